"""The errors that queues and the codec raise. Each message says what is wrong, where, and what to do."""


class QueueError(Exception):
    """The base class of all errors that queues raise."""


class QueueURLError(QueueError):
    """The URL or one of its options is wrong, or an option differs from the one with which the queue was created."""


class UnknownTransport(QueueURLError):
    """No transport is registered or installed for the scheme of a URL."""


class QueueClosed(QueueError):
    """The handle was closed; open the queue again."""


class QueueVersionMismatch(QueueError):
    """The other side uses another version of the protocol; install the same release on both sides."""


class AdmissionTimeout(QueueError):
    """The backlog stayed above the high water until the deadline: the consumer is too slow, or has stopped."""


class QueueFull(QueueError):
    """The backlog would exceed the hard limit, so the record was not accepted."""


class RecordTooLarge(QueueError):
    """The record is too large for this queue, even if the queue is empty."""


class QueueCorrupt(QueueError):
    """Stored data is damaged or missing. A file that only ends too early is not an error."""


class QueueStorageError(QueueError):
    """The disk or the server failed: it is full, out of memory, or denies access. Earlier records are intact."""


class CodecError(Exception):
    """A value cannot be encoded, or bytes cannot be decoded. `path` says where the bad value is; "" if unknown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def prepend_path(self, key: str | int) -> None:
        """Put a key or an index before the path. Each container around the bad value calls this."""
        self.path = (f"[{key}]" if isinstance(key, int) else f".{key}") + self.path

    def __str__(self) -> str:
        return f"{self.reason} (at ${self.path})" if self.path else self.reason


class UnsupportedValue(CodecError):
    """The codec cannot encode values of this kind."""


class MalformedRecord(CodecError):
    """The frames cannot be decoded: the codec did not write them, or they were damaged later."""


class CodecLimitExceeded(CodecError):
    """The record is too large, is nested too deep, or has too many values."""
