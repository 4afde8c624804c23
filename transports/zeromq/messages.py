"""The messages of `zmq://`. This module also checks every message that arrives; no other module does.

A message has a kind, a packed header, and the frames of records. A handle sends these kinds to the hub:

    H<version>  hello: how the handle consumes, and the number of its first unsettled record. The hub answers W or V.
    P  a record with its number. The hub ignores a record if its number is not the expected one.
    Q  a request. The hub answers A.
    B  a heartbeat, from a separate connection of the handle.

The hub sends these kinds to a handle:

    W  welcome: the name of the hub, the number of partitions, and the number of the record that the hub expects.
    S  progress: which records the hub received, and which are settled. The handle can send more, and forget these.
    A  the answer to a request, or the reason why the hub has no answer.
    V  the version of the hub, if the `hello` has another one. V and `H<version>` never change between versions.

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
"""The version of these messages. In version 1, the `hello` message had no number: its kind was only H."""

SAME_RELEASE = "install the same release of rollout-rl on both sides"

_MAX_NUMBER = 1 << 62
_MAX_PARTITIONS = 4096
_MAX_SECONDS = 1e9
_IDENTITY_PATTERN = re.compile(rb"[0-9a-f]{16}")
_HELLO_PATTERN = re.compile(rb"H([0-9]{0,4})")
_VERSION_PATTERN = re.compile(rb"[0-9]{1,4}")

MessagePart: TypeAlias = bytes | memoryview
"""A part of a message: bytes if it is small, otherwise a view of the memory of the ZeroMQ library."""

ValueT = TypeVar("ValueT")
Reader: TypeAlias = Callable[[Any], ValueT]
"""A function that checks a value of a header and returns it. It raises MalformedMessage if the value is wrong."""


class MalformedMessage(Exception):
    """A message has a form that no handle and no hub of this protocol version sends."""


class OtherVersion(Exception):
    """A handle sent a `hello` message with another version of the protocol."""

    def __init__(self, version: int) -> None:
        super().__init__(f"the sender uses version {version} of the zmq:// protocol")
        self.version = version


class Hello(NamedTuple):
    """The first message of a handle. The handle repeats it at intervals."""

    lease: Lease
    """Whether the handle leases whole partitions or single records."""
    consume: tuple[int, ...] | None
    """The partitions that the handle may lease. None: all of them."""
    next_number: int
    """The number of the handle's first unsettled record. A new hub expects this record first."""


class Put(NamedTuple):
    """A record that a handle puts."""

    number: int
    """The number that the handle gave the record. A handle numbers its records without gaps."""
    key: str
    """The key of the record."""
    tag: str
    """The label that the producer gave the record."""
    frames: Frames
    """The frames of the record."""


class Request(NamedTuple):
    """A request of a handle to the hub."""

    number: int
    """The number that the handle gave the request. The answer has the same number."""
    operation: str
    """The operation that the hub must do: a key of `_REQUESTS`."""
    arguments: list[Any]
    """The checked arguments of the operation."""


class Heartbeat(NamedTuple):
    """A heartbeat of a handle."""

    identity: bytes
    """The identity of the handle. The message needs it, because heartbeats come from a separate connection."""


class Welcome(NamedTuple):
    """The hub's answer to a `hello` message."""

    hub: str
    """The name of the hub."""
    partitions: int
    """The number of partitions."""
    expected: int
    """The number of the record that the hub expects next."""


class Progress(NamedTuple):
    """A message of the hub about the records that a handle has put."""

    received_below: int
    """The hub has received all records below this number."""
    settled: list[int]
    """The numbers of the records that were acked or rejected since the last such message."""


class Answer(NamedTuple):
    """The hub's answer to a request."""

    number: int
    """The number of the request."""
    problem: str
    """The reason why the hub could not do the operation; empty if it could."""
    value: Any
    """The result of the operation. It is not checked yet."""
    frames: Frames
    """The frames of the records in the result."""


class VersionRefusal(NamedTuple):
    """The hub's answer to a `hello` message with another protocol version."""

    version: int
    """The protocol version of the hub."""


HandleMessage: TypeAlias = Hello | Put | Request | Heartbeat
HubMessage: TypeAlias = Welcome | Progress | Answer | VersionRefusal


def pack(*values: Any) -> bytes:
    """Return a header that contains these values. Raises QueueError if it is longer than the other side accepts."""
    packed: bytes = msgpack.packb(values, unicode_errors="surrogatepass")
    if len(packed) > MAX_HEAD_BYTES:
        raise QueueError(
            f"a key, tag, reason or list has {len(packed)} bytes, but a message can carry at most {MAX_HEAD_BYTES}; "
            "make it shorter"
        )
    return packed


def read_handle_message(parts: Sequence[MessagePart]) -> HandleMessage:
    """Return the checked message that a handle sent to the hub.

    Raises MalformedMessage and OtherVersion, and no other errors.
    """
    kind, header, frames = _split_message(parts)
    if kind == b"P":
        if not frames:
            raise MalformedMessage("a record has no frames")
        number, key, tag = _unpack(header, _number, _text, _text)
        return Put(number, key, tag, frames)
    if kind == b"Q":
        number, operation, arguments = _unpack(header, _number, _text, _values)
        if operation not in _REQUESTS:
            raise MalformedMessage(f"the request {operation[:40]!r} is unknown")
        return Request(number, operation, _read_all(arguments, _REQUESTS[operation]))
    if kind == b"B":
        return Heartbeat(*_unpack(header, _identity))
    if hello := _HELLO_PATTERN.fullmatch(kind):
        version = int(hello[1] or 1)
        if version != PROTOCOL_VERSION:
            raise OtherVersion(version)
        return Hello(*_unpack(header, _lease, _optional(_partitions), _number))
    raise MalformedMessage(f"the kind of message {kind[:16]!r} is unknown")


def read_hub_message(parts: Sequence[MessagePart]) -> HubMessage:
    """Return the checked message that the hub sent to a handle. Raises MalformedMessage, and no other errors."""
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
            raise MalformedMessage("the version is not a number")
        return VersionRefusal(int(bytes(header)))
    raise MalformedMessage(f"the kind of message {kind[:16]!r} is unknown")


def check_identity(identity: bytes) -> str:
    """Return the name of the producer with this connection. Raises MalformedMessage if the identity is not valid."""
    return _identity(identity).decode()


# The hub writes answers with *_to_answer. A handle reads them with *_from_answer, which raise MalformedMessage.


def leased_to_answer(leased: LeasedRecord | None) -> tuple[Any, Frames]:
    """Return the value and the frames of an answer with a leased record, or without one."""
    if leased is None:
        return None, ()
    return (leased.token, leased.key, leased.name, leased.redelivered), leased.frames


def leased_from_answer(value: Any, frames: Frames) -> LeasedRecord | None:
    """Return the leased record in an answer; None if it has none."""
    if value is None:
        return None
    token, key, name, redelivered = _read_all(value, (_token, _text, _text, _flag))
    if not RECORD_NAME_PATTERN.fullmatch(name):
        raise MalformedMessage("the name of a record is damaged")
    if not frames:
        raise MalformedMessage("a record has no frames")
    return LeasedRecord(token, frames, key, name, redelivered)


def letters_to_answer(letters: Sequence[DeadLetter]) -> tuple[Any, Frames]:
    """Return the value and the frames of an answer with these dead letters."""
    value = [(letter.id, len(letter.frames), letter.key, letter.tag, letter.reason) for letter in letters]
    return value, tuple(frame for letter in letters for frame in letter.frames)


def letters_from_answer(value: Any, frames: Frames) -> list[DeadLetter]:
    """Return the dead letters in an answer."""
    rows = [_read_all(row, (_text, _number, _text, _text, _text)) for row in _values(value)]
    parts = _split_frames(frames, [row[1] for row in rows])
    return [DeadLetter(row[0], own_frames, *row[2:]) for row, own_frames in zip(rows, parts, strict=True)]


def peeked_to_answer(peeked: Sequence[Peeked]) -> tuple[Any, Frames]:
    """Return the value and the frames of an answer with these peeked records."""
    value = [(len(p.frames), p.key, p.tag, p.partition, p.position, p.delivered) for p in peeked]
    return value, tuple(frame for p in peeked for frame in p.frames)


def peeked_from_answer(value: Any, frames: Frames) -> list[Peeked]:
    """Return the peeked records in an answer."""
    readers = (_number, _text, _text, _partition, _number, _flag)
    rows = [_read_all(row, readers) for row in _values(value)]
    parts = _split_frames(frames, [row[0] for row in rows])
    return [Peeked(own_frames, *row[1:]) for row, own_frames in zip(rows, parts, strict=True)]


def stats_from_answer(value: Any, frames: Frames) -> QueueStats:
    """Return the stats in an answer."""
    readers = (_number, _number, _seconds, _number, _number, _number, _number)
    return QueueStats(*_read_all(value, readers))


def tokens_from_answer(value: Any, frames: Frames) -> list[LeaseToken]:
    """Return the lease tokens in an answer."""
    return _tokens(value)


def flag_from_answer(value: Any, frames: Frames) -> bool:
    """Return the boolean in an answer."""
    return _flag(value)


def nothing_from_answer(value: Any, frames: Frames) -> None:
    """Raise MalformedMessage if an answer has a value."""
    if value is not None:
        raise MalformedMessage("the answer has a value, but should have none")


def _split_message(parts: Sequence[MessagePart]) -> tuple[bytes, MessagePart, Frames]:
    if len(parts) < 2:
        raise MalformedMessage("the message has no header")
    kind, header, *frames = parts
    return bytes(kind[:16]), header, tuple(frames)


def _unpack(header: MessagePart, *readers: Reader[Any]) -> list[Any]:
    if len(header) > MAX_HEAD_BYTES:
        raise MalformedMessage(f"the header has {len(header)} bytes, but at most {MAX_HEAD_BYTES} are allowed")
    try:
        # Each value takes at least one byte, so only a long header can have too many values.
        if len(header) > MAX_VALUES:
            check_structure(bytes(header))
        values = msgpack.unpackb(header, unicode_errors="surrogatepass", use_list=True)
    except (ValueError, TypeError, CodecError) as error:
        raise MalformedMessage(f"the header cannot be decoded: {error}") from None
    return _read_all(values, readers)


def _read_all(values: Any, readers: Sequence[Reader[Any]]) -> list[Any]:
    if type(values) is not list or len(values) != len(readers):
        raise MalformedMessage(f"the header needs a list of {len(readers)} values")
    return [read(value) for read, value in zip(readers, values, strict=True)]


def _split_frames(frames: Frames, counts: Sequence[int]) -> list[Frames]:
    if sum(counts) != len(frames):
        raise MalformedMessage(f"the message has {len(frames)} frames instead of {sum(counts)}")
    parts, start = [], 0
    for count in counts:
        parts.append(frames[start : start + count])
        start += count
    return parts


def _integer_below(limit: int) -> Reader[int]:
    def read(value: Any) -> int:
        if type(value) is not int or not 0 <= value < limit:
            raise MalformedMessage(f"a value is not an integer from 0 to {limit - 1}")
        return value

    return read


def _anything(value: Any) -> Any:
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise MalformedMessage("a value is not a string")
    return value


def _name(value: Any) -> str:
    if not 0 < len(_text(value)) <= 64:
        raise MalformedMessage("a name is empty or has more than 64 characters")
    return cast(str, value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise MalformedMessage("a value is not a boolean")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _MAX_SECONDS:
        raise MalformedMessage("a value is not a valid number of seconds")
    return cast(float, value)


def _lease(value: Any) -> Lease:
    if value not in ("partition", "record"):
        raise MalformedMessage("the lease is neither 'partition' nor 'record'")
    return cast(Lease, value)


def _identity(value: Any) -> bytes:
    if type(value) is not bytes or not _IDENTITY_PATTERN.fullmatch(value):
        raise MalformedMessage("the identity of the connection is not the name of a producer")
    return value


def _list_of(read: Reader[ValueT]) -> Reader[list[ValueT]]:
    def read_list(value: Any) -> list[ValueT]:
        if type(value) is not list:
            raise MalformedMessage("a value is not a list")
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
"""The operations of a request. For each one: the functions that check its arguments."""
