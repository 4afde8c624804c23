"""The entries of a stream. Any program may add entries, so everything that is read from one is checked.

An entry of ours has the fields `k` (key), `t` (tag) and `d` (the frames); a dead letter also has `r` (the reason).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from transports.base import DeadLetter, Frames

RawFields: TypeAlias = Mapping[bytes, bytes] | Sequence[bytes] | None
"""The fields as a command or a script answers them; empty or None if the entry was deleted."""

_SEQUENCE_BITS = 20
_MILLISECOND_BITS = 43
_ID_PATTERN = re.compile(rb"([0-9]{1,20})-([0-9]{1,20})")


class ForeignEntry(Exception):
    """An entry that another program wrote. It becomes a dead letter with this key, tag and frames."""

    def __init__(self, reason: str, id_: bytes, fields: Mapping[bytes, bytes]) -> None:
        super().__init__(f"not a record of this queue: {reason}")
        self.key = ""
        self.tag = f"foreign entry {decode_lossy(id_)}"
        self.frames: Frames = tuple(part for field in fields.items() for part in field) or (b"",)


class StreamEntry(NamedTuple):
    """A record as the server has it."""

    id: bytes
    """The id of the entry."""
    position: int
    """The id as one number, which is the position in the lane."""
    key: str
    """The key under which it was put."""
    tag: str
    """The producer's label."""
    frames: Frames
    """Its frames."""


def read_entry(id_: bytes, raw_fields: RawFields) -> StreamEntry:
    """Return the record of an entry. Raises ForeignEntry."""
    fields = _to_mapping(raw_fields)
    try:
        return StreamEntry(id_, _entry_position(id_), *_read_record(fields))
    except ValueError as error:
        raise ForeignEntry(str(error), id_, fields) from None


def read_dead_letter(id_: bytes, raw_fields: RawFields) -> DeadLetter:
    """Return a dead letter, also for a foreign entry, so that it can be seen and discarded."""
    fields = _to_mapping(raw_fields)
    try:
        reason = decode_text(_field(fields, b"r"))
        key, tag, frames = _read_record(fields)
    except ValueError as error:
        foreign = ForeignEntry(str(error), id_, fields)
        return DeadLetter(decode_lossy(id_), foreign.frames, foreign.key, foreign.tag, str(foreign))
    return DeadLetter(decode_lossy(id_), frames, key, tag, reason)


def position_of_mark(id_: bytes) -> int:
    """Return the position of an id, also if it is the id of a foreign entry. Raises ValueError."""
    milliseconds, sequence = _split_id(id_)
    return milliseconds << _SEQUENCE_BITS | min(sequence, (1 << _SEQUENCE_BITS) - 1)


def id_of_position(position: int) -> str:
    """Return the id of the entry at a position."""
    return f"{position >> _SEQUENCE_BITS}-{position & ((1 << _SEQUENCE_BITS) - 1)}"


def join_frames(frames: Frames) -> bytes:
    """Return the frames as one value: their number, their sizes, their bytes."""
    sizes = [memoryview(frame).nbytes for frame in frames]
    return b"".join([struct.pack(f"<{len(sizes) + 1}I", len(sizes), *sizes), *frames])


def split_frames(data: bytes) -> Frames:
    """Return the frames that `join_frames` joined. Raises ValueError."""
    count = int.from_bytes(data[:4], "little")
    offset = 4 + 4 * count
    if count == 0 or offset > len(data):
        raise ValueError("its frames are damaged")
    sizes = struct.unpack_from(f"<{count}I", data, 4)
    if offset + sum(sizes) != len(data):
        raise ValueError("its frames are damaged")
    view = memoryview(data)
    frames = []
    for size in sizes:
        frames.append(view[offset : offset + size])
        offset += size
    return tuple(frames)


def encode_text(value: str) -> bytes:
    """Return the bytes of a text, also of one with lone surrogates."""
    return value.encode("utf-8", "surrogatepass")


def decode_text(value: bytes) -> str:
    """Return the text that `encode_text` encoded. Raises ValueError."""
    return str(value, "utf-8", "surrogatepass")


def decode_lossy(value: bytes) -> str:
    """Return a text for people, for any bytes."""
    return value.decode("utf-8", "replace")


def _to_mapping(fields: RawFields) -> Mapping[bytes, bytes]:
    if isinstance(fields, Mapping):
        return fields
    return dict(zip(fields[::2], fields[1::2], strict=False)) if fields else {}


def _read_record(fields: Mapping[bytes, bytes]) -> tuple[str, str, Frames]:
    key, tag, data = (_field(fields, name) for name in (b"k", b"t", b"d"))
    return decode_text(key), decode_text(tag), split_frames(data)


def _field(fields: Mapping[bytes, bytes], name: bytes) -> bytes:
    if name not in fields:
        raise ValueError(f"it has no field {name.decode()!r}")
    return fields[name]


def _entry_position(id_: bytes) -> int:
    milliseconds, sequence = _split_id(id_)
    if milliseconds >> _MILLISECOND_BITS or sequence >> _SEQUENCE_BITS:
        raise ValueError("a server would not give it this id")
    return milliseconds << _SEQUENCE_BITS | sequence


def _split_id(id_: bytes) -> tuple[int, int]:
    match = _ID_PATTERN.fullmatch(id_)
    if match is None:
        raise ValueError(f"{decode_lossy(id_)!r} is not the id of an entry")
    return int(match[1]), int(match[2])
