"""The errors that queues and the codec raise. Each says what is wrong, where, and what to do."""


class QueueError(Exception):
    """The base class of all errors of queues."""


class QueueURLError(QueueError):
    """The URL or one of its options is wrong, or does not match the queue as it was created."""


class UnknownTransport(QueueURLError):
    """No transport is registered or installed for the scheme of a URL."""


class QueueClosed(QueueError):
    """The handle was closed; open the queue again."""


class QueueVersionMismatch(QueueError):
    """The other side speaks another version of the protocol; install the same release on both sides."""


class AdmissionTimeout(QueueError):
    """The backlog stayed above the high water until the deadline: the consumer is too slow, or has stopped."""


class QueueFull(QueueError):
    """The record would exceed the hard limit; it was not accepted."""


class RecordTooLarge(QueueError):
    """The record is too large for this queue, even for an empty one."""


class QueueCorrupt(QueueError):
    """Stored data is damaged or missing, and not only incomplete at its end."""


class QueueStorageError(QueueError):
    """The disk or the server refused: it is full, out of memory, or denies access. Earlier records are intact."""


class CodecError(Exception):
    """A value cannot be encoded, or bytes cannot be decoded; `path` says where the bad value is, if that is known."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def prepend_path(self, key: str | int) -> None:
        """Put a key or an index before the path; each container of the bad value does so."""
        self.path = (f"[{key}]" if isinstance(key, int) else f".{key}") + self.path

    def __str__(self) -> str:
        return f"{self.reason} (at ${self.path})" if self.path else self.reason


class UnsupportedValue(CodecError):
    """The codec does not carry values of this kind."""


class MalformedRecord(CodecError):
    """These frames were not written by the codec, or were damaged later."""


class CodecLimitExceeded(CodecError):
    """The record is too large, nests too deep, or has too many values."""
