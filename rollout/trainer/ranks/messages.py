"""Defines the messages between the reading rank and the other ranks."""

import enum
import struct
from dataclasses import dataclass

MESSAGE_BYTES = 4096
"""The size of every message, so that its receiver can wait for it without knowing what comes."""
_HEADER = struct.Struct("!BqI")


class Kind(enum.IntEnum):
    """What a message means."""

    HELLO = enum.auto()
    """Another rank has opened its batches; the text contains its settings."""
    READY = enum.auto()
    """Another rank wants the next step, or has made the batch of the current one."""
    WAITING = enum.auto()
    """The reading rank waits for data or for a rank."""
    GO = enum.auto()
    """All ranks are ready, so they continue."""
    STEP = enum.auto()
    """The rank's part of a step follows; the number is its size in bytes."""
    ENDED = enum.auto()
    """The queues have ended; the number counts the groups that are left over."""
    FAILED = enum.auto()
    """The rank with this number has failed; the text says why."""
    REFUSED = enum.auto()
    """The settings of the ranks do not fit together; the text says why."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        kind: what the message means.
        number: a number; `kind` says which.
        text: a short text; `kind` says which.
    """

    kind: Kind
    number: int = 0
    text: str = ""

    def encode(self) -> bytearray:
        """Return the message as bytes. The end of a long text is cut off."""
        text = self.text.encode("utf-8", "replace")[: MESSAGE_BYTES - _HEADER.size]
        return bytearray((_HEADER.pack(self.kind, self.number, len(text)) + text).ljust(MESSAGE_BYTES, b"\0"))

    @classmethod
    def decode(cls, frame: bytes) -> "Message":
        """Return the message that these bytes contain."""
        kind, number, length = _HEADER.unpack_from(frame)
        return cls(Kind(kind), number, frame[_HEADER.size : _HEADER.size + length].decode("utf-8", "ignore"))
