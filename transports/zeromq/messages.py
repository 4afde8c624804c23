"""The messages of `zmq://`, and the checks of everything that arrives. No other module checks messages.

A message has a kind, a packed header and the frames of a record. From a handle to the hub:

    H<version>  hello: how it consumes, and the number of its first unsettled record; answered by W, or by V
    P  a record with its number; a number that is not the next one is ignored
    Q  a request; answered by A
    B  a heartbeat, from a connection of its own

From the hub to a handle:

    W  welcome: the name of the hub, its partitions, and the number of the record that it expects
    S  which records were received and which are settled, so that the handle can send more and forget them
    A  the answer to a request, or why there is none
    V  the version of the hub, if the hello has another one; V and `H<version>` are the same in all versions

Change PROTOCOL_VERSION whenever a message changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import msgpack  # type: ignore[import-untyped]

from transports.base import DeadLetter, Frames, Lease, Peeked, QueueStats
from transports.codec.limits import MAX_HEAD_BYTES, MAX_VALUES, check_structure
from transports.errors import CodecError, QueueError
from transports.zeromq.links import RECORD_NAME_PATTERN, LeasedRecord, LeaseToken

PROTOCOL_VERSION = 2
"""The version of these messages. Version 1 had no number: its hello is a plain H."""

SAME_RELEASE = "install the same release of rollout-rl on both sides"

_MAX_NUMBER = 1 << 62
_MAX_PARTITIONS = 4096
_MAX_SECONDS = 1e9
_IDENTITY_PATTERN = re.compile(rb"[0-9a-f]{16}")
_HELLO_PATTERN = re.compile(rb"H([0-9]{0,4})")
_VERSION_PATTERN = re.compile(rb"[0-9]{1,4}")

MessagePart: TypeAlias = bytes | memoryview
"""A part of a message: bytes if it is small, otherwise a view of the library's memory."""

ValueT = TypeVar("ValueT")
Reader: TypeAlias = Callable[[Any], ValueT]
"""Checks a value of a header. Raises MalformedMessage."""


class MalformedMessage(Exception):
    """No handle and no hub of this version sends such a message."""


class OtherVersion(Exception):
    """A hello has another version of the protocol."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version {version} of the zmq:// protocol")
        self.version = version


class Hello(NamedTuple):
    """The first message of a handle, which it repeats."""

    lease: Lease
    """What the handle leases as a consumer."""
    consume: tuple[int, ...] | None
    """The partitions that it may lease; None: all of them."""
    next_number: int
    """The number of its first unsettled record."""


class Put(NamedTuple):
    """A record that a handle puts."""

    number: int
    """The handle's number for it."""
    key: str
    """Its key."""
    tag: str
    """Its tag."""
    frames: Frames
    """Its frames."""


class Request(NamedTuple):
    """A request of a handle."""

    number: int
    """The handle's number for it, which the answer repeats."""
    operation: str
    """What the hub must do: a key of `_REQUESTS`."""
    arguments: list[Any]
    """The checked arguments of the operation."""


class Heartbeat(NamedTuple):
    """A heartbeat of a handle."""

    identity: bytes
    """The handle. The message comes from another connection of it."""


class Welcome(NamedTuple):
    """The answer to a hello."""

    hub: str
    """The name of the hub."""
    partitions: int
    """The number of partitions."""
    expected: int
    """The number of the record that the hub expects next."""


class Progress(NamedTuple):
    """What happened to the records of a handle."""

    received_below: int
    """The hub has received all records below this number."""
    settled: list[int]
    """The numbers of records that were acked or rejected."""


class Answer(NamedTuple):
    """The answer to a request."""

    number: int
    """The number of the request."""
    problem: str
    """Why the hub has no answer; empty if it has one."""
    value: Any
    """The result, which is not checked yet."""
    frames: Frames
    """The frames of the records in the result."""


class VersionRefusal(NamedTuple):
    """The answer to a hello of another version."""

    version: int
    """The version of the hub."""


HandleMessage: TypeAlias = Hello | Put | Request | Heartbeat
HubMessage: TypeAlias = Welcome | Progress | Answer | VersionRefusal


def pack(*values: Any) -> bytes:
    """Return a header. Raises QueueError if it is longer than the other side accepts."""
    packed: bytes = msgpack.packb(values, unicode_errors="surrogatepass")
    if len(packed) > MAX_HEAD_BYTES:
        raise QueueError(
            f"a key, a tag, a reason or a list has {len(packed)} bytes; a message carries at most {MAX_HEAD_BYTES}. "
            "Send less at a time."
        )
    return packed


def read_handle_message(parts: Sequence[MessagePart]) -> HandleMessage:
    """Return a message from a handle to the hub. Raises MalformedMessage and OtherVersion, and no other error."""
    kind, header, frames = _split_message(parts)
    if kind == b"P":
        if not frames:
            raise MalformedMessage("a record without frames")
        number, key, tag = _unpack(header, _number, _text, _text)
        return Put(number, key, tag, frames)
    if kind == b"Q":
        number, operation, arguments = _unpack(header, _number, _text, _values)
        if operation not in _REQUESTS:
            raise MalformedMessage(f"an unknown request {operation[:40]!r}")
        return Request(number, operation, _read_all(arguments, _REQUESTS[operation]))
    if kind == b"B":
        return Heartbeat(*_unpack(header, _identity))
    if hello := _HELLO_PATTERN.fullmatch(kind):
        version = int(hello[1] or 1)
        if version != PROTOCOL_VERSION:
            raise OtherVersion(version)
        return Hello(*_unpack(header, _lease, _optional(_partitions), _number))
    raise MalformedMessage(f"an unknown kind of message, {kind[:16]!r}")


def read_hub_message(parts: Sequence[MessagePart]) -> HubMessage:
    """Return a message from the hub to a handle. Raises MalformedMessage, and no other error."""
    kind, header, frames = _split_message(parts)
    if kind == b"A":
        number, problem, value = _unpack(header, _number, _text, _anything)
        return Answer(number, problem, value, frames)
    if kind == b"S":
        return Progress(*_unpack(header, _number, _numbers))
    if kind == b"W":
        return Welcome(*_unpack(header, _name, _partition_count, _number))
    if kind == b"V":
        if not _VERSION_PATTERN.fullmatch(header):
            raise MalformedMessage("a version that is not a number")
        return VersionRefusal(int(bytes(header)))
    raise MalformedMessage(f"an unknown kind of message, {kind[:16]!r}")


def check_identity(identity: bytes) -> str:
    """Return the name of the producer that has this connection. Raises MalformedMessage."""
    return _identity(identity).decode()


# Answers: the hub writes them, and a handle reads them. Readers raise MalformedMessage.


def leased_to_answer(leased: LeasedRecord | None) -> tuple[Any, Frames]:
    """Return the answer that has a leased record, or none."""
    if leased is None:
        return None, ()
    return (leased.token, leased.key, leased.name, leased.redelivered), leased.frames


def leased_from_answer(value: Any, frames: Frames) -> LeasedRecord | None:
    """Return the leased record of an answer."""
    if value is None:
        return None
    token, key, name, redelivered = _read_all(value, (_token, _text, _text, _flag))
    if not RECORD_NAME_PATTERN.fullmatch(name):
        raise MalformedMessage("a record with a damaged name")
    if not frames:
        raise MalformedMessage("a record without frames")
    return LeasedRecord(token, frames, key, name, redelivered)


def letters_to_answer(letters: Sequence[DeadLetter]) -> tuple[Any, Frames]:
    """Return the answer that has these dead letters."""
    value = [(letter.id, len(letter.frames), letter.key, letter.tag, letter.reason) for letter in letters]
    return value, tuple(frame for letter in letters for frame in letter.frames)


def letters_from_answer(value: Any, frames: Frames) -> list[DeadLetter]:
    """Return the dead letters of an answer."""
    rows = [_read_all(row, (_text, _number, _text, _text, _text)) for row in _values(value)]
    parts = _split_frames(frames, [row[1] for row in rows])
    return [DeadLetter(row[0], own_frames, *row[2:]) for row, own_frames in zip(rows, parts, strict=True)]


def peeked_to_answer(peeked: Sequence[Peeked]) -> tuple[Any, Frames]:
    """Return the answer that has these peeked records."""
    value = [(len(p.frames), p.key, p.tag, p.partition, p.position, p.delivered) for p in peeked]
    return value, tuple(frame for p in peeked for frame in p.frames)


def peeked_from_answer(value: Any, frames: Frames) -> list[Peeked]:
    """Return the peeked records of an answer."""
    readers = (_number, _text, _text, _partition, _number, _flag)
    rows = [_read_all(row, readers) for row in _values(value)]
    parts = _split_frames(frames, [row[0] for row in rows])
    return [Peeked(own_frames, *row[1:]) for row, own_frames in zip(rows, parts, strict=True)]


def stats_from_answer(value: Any, frames: Frames) -> QueueStats:
    """Return the stats of an answer."""
    readers = (_number, _number, _seconds, _number, _number, _number, _number)
    return QueueStats(*_read_all(value, readers))


def tokens_from_answer(value: Any, frames: Frames) -> list[LeaseToken]:
    """Return the tokens of an answer."""
    return _tokens(value)


def flag_from_answer(value: Any, frames: Frames) -> bool:
    """Return the yes or no of an answer."""
    return _flag(value)


def nothing_from_answer(value: Any, frames: Frames) -> None:
    """Check that an answer has no value."""
    if value is not None:
        raise MalformedMessage("a value, where none is expected")


def _split_message(parts: Sequence[MessagePart]) -> tuple[bytes, MessagePart, Frames]:
    if len(parts) < 2:
        raise MalformedMessage("a message without a header")
    kind, header, *frames = parts
    return bytes(kind[:16]), header, tuple(frames)


def _unpack(header: MessagePart, *readers: Reader[Any]) -> list[Any]:
    if len(header) > MAX_HEAD_BYTES:
        raise MalformedMessage(f"a header of {len(header)} bytes")
    try:
        # Each value takes at least one byte, so only a long header can hold too many.
        if len(header) > MAX_VALUES:
            check_structure(bytes(header))
        values = msgpack.unpackb(header, unicode_errors="surrogatepass", use_list=True)
    except (ValueError, TypeError, CodecError) as error:
        raise MalformedMessage(f"a header that cannot be read: {error}") from None
    return _read_all(values, readers)


def _read_all(values: Any, readers: Sequence[Reader[Any]]) -> list[Any]:
    if type(values) is not list or len(values) != len(readers):
        raise MalformedMessage(f"a header without a list of {len(readers)} values")
    return [read(value) for read, value in zip(readers, values, strict=True)]


def _split_frames(frames: Frames, counts: Sequence[int]) -> list[Frames]:
    if sum(counts) != len(frames):
        raise MalformedMessage(f"{len(frames)} frames instead of {sum(counts)}")
    parts, start = [], 0
    for count in counts:
        parts.append(frames[start : start + count])
        start += count
    return parts


def _integer_below(limit: int) -> Reader[int]:
    def read(value: Any) -> int:
        if type(value) is not int or not 0 <= value < limit:
            raise MalformedMessage(f"a value that is not a number below {limit}")
        return value

    return read


def _anything(value: Any) -> Any:
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise MalformedMessage("a value that is not a text")
    return value


def _name(value: Any) -> str:
    if not 0 < len(_text(value)) <= 64:
        raise MalformedMessage("a text that is not a name")
    return cast(str, value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise MalformedMessage("a value that is neither true nor false")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _MAX_SECONDS:
        raise MalformedMessage("a value that is not a number of seconds")
    return cast(float, value)


def _lease(value: Any) -> Lease:
    if value not in ("partition", "record"):
        raise MalformedMessage("a lease that is neither 'partition' nor 'record'")
    return cast(Lease, value)


def _identity(value: Any) -> bytes:
    if type(value) is not bytes or not _IDENTITY_PATTERN.fullmatch(value):
        raise MalformedMessage("a connection without the name of a producer")
    return value


def _list_of(read: Reader[ValueT]) -> Reader[list[ValueT]]:
    def read_list(value: Any) -> list[ValueT]:
        if type(value) is not list:
            raise MalformedMessage("a value that is not a list")
        return [read(item) for item in value]

    return read_list


def _optional(read: Reader[ValueT]) -> Reader[ValueT | None]:
    return lambda value: None if value is None else read(value)


_number = _integer_below(_MAX_NUMBER)
_partition = _integer_below(_MAX_PARTITIONS)
_numbers, _partitions, _values = _list_of(_number), _list_of(_partition), _list_of(_anything)


def _partition_count(value: Any) -> int:
    return _partition(value - 1 if type(value) is int else value) + 1


def _token(value: Any) -> LeaseToken:
    return LeaseToken(*_read_all(value, (_name, _partition, _number, _number)))


_tokens = _list_of(_token)


_REQUESTS: dict[str, tuple[Reader[Any], ...]] = {
    "take": (_seconds,),
    "ack": (_tokens,),
    "nack": (_token, _seconds),
    "reject": (_token, _text),
    "stats": (),
    "dead_letters": (_number,),
    "discard": (_text,),
    "peek": (_number,),
    "release": (),
    "leave": (),
}
"""The requests, each with the readers of its arguments."""
