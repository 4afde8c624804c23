"""Every error that a queue or the codec raises on purpose: what is wrong, where, and what to do about it."""


class QueueError(Exception):
    """The base class of all errors of queues."""


class QueueURLError(QueueError):
    """The URL, or an option in its query, is not usable, or disagrees with how the queue was created."""


class UnknownTransport(QueueURLError):
    """No transport is registered or installed for the scheme of a URL."""


class QueueClosed(QueueError):
    """The handle was closed; open the queue again to go on."""


class QueueVersionMismatch(QueueError):
    """The other side of the queue speaks another version of its protocol: install the same release on both sides."""


class AdmissionTimeout(QueueError):
    """The backlog stayed above the high water until the deadline: the consumer is too slow, or has stopped."""


class QueueFull(QueueError):
    """The record would exceed the hard limit; it was not accepted."""


class RecordTooLarge(QueueError):
    """The record can never be accepted by this queue, however empty it is."""


class QueueCorrupt(QueueError):
    """Stored data is damaged or missing, and not only cut off at its end."""


class QueueStorageError(QueueError):
    """The disk or server refused: full, no permission, out of memory. Records that were accepted before are intact."""


class CodecError(Exception):
    """A value cannot be encoded, or bytes cannot be decoded; `path` says where the bad value is, as far as known."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def prepend_path(self, key: str | int) -> None:
        """Add the key or the index of the bad value in its container, while the error passes through it."""
        self.path = (f"[{key}]" if isinstance(key, int) else f".{key}") + self.path

    def __str__(self) -> str:
        return f"{self.reason} (at ${self.path})" if self.path else self.reason


class UnsupportedValue(CodecError):
    """The codec does not carry values of this kind."""


class MalformedRecord(CodecError):
    """These frames were not written by the codec, or were damaged since."""


class CodecLimitExceeded(CodecError):
    """Too large, too deep or too many values."""
