"""How a record lies in a segment: prefix, frame lengths, key, tag, frames, trailer.

The prefix has a checksum over all that follows it, so half a record is never taken for a whole one. The trailer repeats
how many records and bytes the writer has put so far: who looks at the end of a file knows its backlog without reading
the rest. A record without frames says that its writer has closed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

from transports.base import Frames

_HEADER = struct.Struct("<8sQQI4x")
_PREFIX = struct.Struct("<IIQdHHI")
_TRAILER = struct.Struct("<IIQQI4x")
_MAGIC = b"ROLLSEG1"
_TRAILER_START = struct.Struct("<II")
_TRAILER_MAGIC = 0x52454344
_CHECKSUM_BYTES = 4

HEADER_BYTES = _HEADER.size
PREFIX_BYTES = _PREFIX.size
TRAILER_BYTES = _TRAILER.size


@dataclass(frozen=True, slots=True)
class Tally:
    """How much a writer had put before a segment, or up to the end of a record."""

    records: int
    nbytes: int


class Record(NamedTuple):
    """A whole record, its frames viewing the buffer it was read into."""

    seq: int
    put_at: float
    key: str
    tag: str
    frames: Frames
    nbytes: int
    """Of the frames: what the backlog counts."""
    stored_bytes: int

    @property
    def closes_writer(self) -> bool:
        return not self.frames


def pack_header(before: Tally) -> bytes:
    body = _HEADER.pack(_MAGIC, before.records, before.nbytes, 0)
    return _HEADER.pack(_MAGIC, before.records, before.nbytes, crc32(body))


def unpack_header(data: bytes) -> Tally | None:
    """What its writer had put before this segment, or None where it is no whole header."""
    if len(data) < _HEADER.size:
        return None
    magic, records, nbytes, checksum = _HEADER.unpack_from(data)
    if magic != _MAGIC or crc32(_HEADER.pack(magic, records, nbytes, 0)) != checksum:
        return None
    return Tally(records, nbytes)


def pack_record(
    seq: int, put_at: float, key: bytes, tag: bytes, frames: Frames, before: Tally
) -> tuple[list[bytes | memoryview], int, Tally]:
    """The buffers that make up a record, to be written in one go; how long they are together; the tally after it."""
    sizes = [len(frame) if isinstance(frame, bytes) else frame.nbytes for frame in frames]
    nbytes = sum(sizes)
    tally = Tally(before.records + bool(sizes), before.nbytes + nbytes)
    meta = struct.pack(f"<{len(sizes)}I", *sizes) + key + tag
    length = len(meta) + nbytes
    stored = _PREFIX.size + length + _TRAILER.size
    prefix = _PREFIX.pack(0, length, seq, put_at, len(key), len(tag), len(sizes))
    checksum = crc32(meta, crc32(memoryview(prefix)[_CHECKSUM_BYTES:]))
    for frame in frames:
        checksum = crc32(frame, checksum)
    buffers = [checksum.to_bytes(_CHECKSUM_BYTES, "little") + prefix[_CHECKSUM_BYTES:] + meta, *frames]
    return [*buffers, _pack_trailer(stored, tally)], stored, tally


def stored_length(prefix: memoryview | bytes) -> int:
    """How long the record is that begins so, if it is one."""
    return _PREFIX.size + int(_PREFIX.unpack_from(prefix)[1]) + _TRAILER.size


def put_time(prefix: bytes) -> float:
    """When its writer's clock says that the record was put."""
    return float(_PREFIX.unpack_from(prefix)[3])


def unpack_record(data: memoryview) -> Record | None:
    """The record at the start of `data`, or None where there is no whole and undamaged one."""
    if len(data) < _PREFIX.size:
        return None
    checksum, length, seq, put_at, key_length, tag_length, count = _PREFIX.unpack_from(data)
    end = _PREFIX.size + length
    start = _PREFIX.size + 4 * count + key_length + tag_length
    if len(data) < end + _TRAILER.size or start > end:
        return None
    if crc32(data[_CHECKSUM_BYTES:end]) != checksum or _TRAILER_START.unpack_from(data, end) != (
        _TRAILER_MAGIC,
        end + _TRAILER.size,
    ):
        return None
    sizes = struct.unpack_from(f"<{count}I", data, _PREFIX.size)
    key_at = _PREFIX.size + 4 * count
    key = str(data[key_at : key_at + key_length], "utf-8", "surrogatepass")
    tag = str(data[key_at + key_length : start], "utf-8", "surrogatepass")
    frames = []
    for size in sizes:
        frames.append(data[start : start + size])
        start += size
    return Record(seq, put_at, key, tag, tuple(frames), sum(sizes), end + _TRAILER.size)


def unpack_tally(trailer: memoryview | bytes) -> Tally | None:
    """What the last 32 bytes of a record say, or None where they are not its end."""
    if len(trailer) < _TRAILER.size:
        return None
    magic, _, records, nbytes, checksum = _TRAILER.unpack_from(trailer)
    if magic != _TRAILER_MAGIC or crc32(memoryview(trailer)[: _TRAILER.size - 8]) != checksum:
        return None
    return Tally(records, nbytes)


def _pack_trailer(stored: int, tally: Tally) -> bytes:
    body = _TRAILER.pack(_TRAILER_MAGIC, stored, tally.records, tally.nbytes, 0)
    return _TRAILER.pack(_TRAILER_MAGIC, stored, tally.records, tally.nbytes, crc32(body[: _TRAILER.size - 8]))
