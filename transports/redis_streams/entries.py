"""Encodes and checks the entries of a stream. Any program may add entries, so all contents of an entry are checked.

A valid entry has the fields `k` (key), `t` (tag) and `d` (the frames). A dead letter also has `r` (the reason).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from transports.base import DeadLetter, Frames

RawFields: TypeAlias = Mapping[bytes, bytes] | Sequence[bytes] | None
"""The fields of an entry, as a command or a script returns them. Empty or None if the entry was deleted."""

_SEQUENCE_BITS = 20
_MILLISECOND_BITS = 43
_ID_PATTERN = re.compile(rb"([0-9]{1,20})-([0-9]{1,20})")


class ForeignEntry(Exception):
    """An entry that is not a valid record, because another program wrote it.

    It becomes a dead letter with the `key`, `tag` and `frames` of this error.
    """

    def __init__(self, reason: str, id_: bytes, fields: Mapping[bytes, bytes]) -> None:
        super().__init__(f"this entry is not a record of this queue: {reason}")
        self.key = ""
        self.tag = f"foreign entry {decode_lossy(id_)}"
        self.frames: Frames = tuple(part for field in fields.items() for part in field) or (b"",)


class StreamEntry(NamedTuple):
    """A record that was read from an entry of a stream."""

    id: bytes
    """The id of the entry on the server."""
    position: int
    """The position of the record in its lane: the id of the entry as one number."""
    key: str
    """The key under which the record was put."""
    tag: str
    """The label that the producer gave the record."""
    frames: Frames
    """The frames of the record."""


def read_entry(id_: bytes, raw_fields: RawFields) -> StreamEntry:
    """Return the record in an entry. Raises ForeignEntry if another program wrote the entry."""
    fields = _to_mapping(raw_fields)
    try:
        return StreamEntry(id_, _entry_position(id_), *_read_record(fields))
    except ValueError as error:
        raise ForeignEntry(str(error), id_, fields) from None


def read_dead_letter(id_: bytes, raw_fields: RawFields) -> DeadLetter:
    """Return the dead letter in an entry. Return one for a foreign entry, too, so that it can be seen and discarded."""
    fields = _to_mapping(raw_fields)
    try:
        reason = decode_text(_field(fields, b"r"))
        key, tag, frames = _read_record(fields)
    except ValueError as error:
        foreign = ForeignEntry(str(error), id_, fields)
        return DeadLetter(decode_lossy(id_), foreign.frames, foreign.key, foreign.tag, str(foreign))
    return DeadLetter(decode_lossy(id_), frames, key, tag, reason)


def position_of_mark(id_: bytes) -> int:
    """Return the position for an id. It may be the id of a foreign entry. Raises ValueError if it is not an id."""
    milliseconds, sequence = _split_id(id_)
    return milliseconds << _SEQUENCE_BITS | min(sequence, (1 << _SEQUENCE_BITS) - 1)


def id_of_position(position: int) -> str:
    """Return the id of the entry at a position."""
    return f"{position >> _SEQUENCE_BITS}-{position & ((1 << _SEQUENCE_BITS) - 1)}"


def join_frames(frames: Frames) -> bytes:
    """Return the frames as one value, which contains their number, their sizes and their bytes."""
    sizes = [memoryview(frame).nbytes for frame in frames]
    return b"".join([struct.pack(f"<{len(sizes) + 1}I", len(sizes), *sizes), *frames])


def split_frames(data: bytes) -> Frames:
    """Return the frames that `join_frames` joined. Raises ValueError if they are damaged."""
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
    """Return a text as UTF-8. The text may contain halves of characters (lone surrogates)."""
    return value.encode("utf-8", "surrogatepass")


def decode_text(value: bytes) -> str:
    """Return the text that `encode_text` encoded. Raises ValueError if it is damaged."""
    return str(value, "utf-8", "surrogatepass")


def decode_lossy(value: bytes) -> str:
    """Return any bytes as a text that people can read. Bytes that are not UTF-8 are replaced."""
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
        raise ValueError("its id is too large; the server creates smaller ids")
    return milliseconds << _SEQUENCE_BITS | sequence


def _split_id(id_: bytes) -> tuple[int, int]:
    match = _ID_PATTERN.fullmatch(id_)
    if match is None:
        raise ValueError(f"{decode_lossy(id_)!r} is not the id of an entry")
    return int(match[1]), int(match[2])
