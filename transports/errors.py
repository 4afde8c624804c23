"""Every error that a queue or the codec raises on purpose: what is wrong, where, and what to do about it."""


class QueueError(Exception):
    """The root of them all."""


class QueueURLError(QueueError):
    """The URL, or an option in its query, is not usable, or disagrees with how the queue was created."""


class UnknownTransport(QueueURLError):
    """No transport is registered or installed for the scheme of a URL."""


class QueueClosed(QueueError):
    """The handle was closed; open the queue again to go on."""


class AdmissionTimeout(QueueError):
    """The backlog stayed over the high water until the deadline: the consumer is too slow, or gone."""


class QueueFull(QueueError):
    """The hard limit would be passed; the record was not accepted."""


class RecordTooLarge(QueueError):
    """The record can never be accepted by this queue, however empty it is."""


class QueueCorrupt(QueueError):
    """What is stored is not what was written, and not merely cut off at its end."""


class QueueStorageError(QueueError):
    """The medium refused: a full disk, no permission, a server out of memory. What was accepted before is intact."""


class CodecError(Exception):
    """A value cannot be encoded, or bytes cannot be decoded; `path` leads to the offending place, as far as known."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def prepend_path(self, key: str | int) -> None:
        """Note, on the way out, the key or the index of the container that holds the offending place."""
        self.path = (f"[{key}]" if isinstance(key, int) else f".{key}") + self.path

    def __str__(self) -> str:
        return f"{self.reason} (at ${self.path})" if self.path else self.reason


class UnsupportedValue(CodecError):
    """The codec does not carry values of this kind."""


class MalformedRecord(CodecError):
    """These frames were not written by the codec, or were damaged since."""


class UnknownType(CodecError):
    """The record holds a dataclass or an enum that this process has not registered."""


class CodecLimitExceeded(CodecError):
    """Too large, too deep or too many values."""
