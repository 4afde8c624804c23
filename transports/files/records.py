"""The format of a record in a segment: a prefix, the lengths of its frames, key, tag, frames, and a trailer.

The prefix contains a checksum over everything up to the trailer, so that a half-written record does not look complete.
The trailer contains the number of records and bytes that the writer has put so far. So a reader can count the records
of a writer from the end of its last file. A record without frames means that its writer has closed.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

from transports.base import Frames

_HEADER = struct.Struct("<8sQQI4x")
_PREFIX = struct.Struct("<IIQdHHI")
_PREFIX_BODY = struct.Struct("<IQdHHI")
_TRAILER = struct.Struct("<IIQQI4x")
_TRAILER_BODY = struct.Struct("<IIQQ")
_MAGIC = b"ROLLSEG1"
_TRAILER_START = struct.Struct("<II")
_TRAILER_MAGIC = 0x52454344
_CHECKSUM_BYTES = 4
_LATEST_PUT_TIME = 1e11

HEADER_BYTES = _HEADER.size
PREFIX_BYTES = _PREFIX.size
TRAILER_BYTES = _TRAILER.size


class PutTotals(NamedTuple):
    """The number of records and bytes that a writer had put up to some place in its segments."""

    records: int
    """The number of records."""
    nbytes: int
    """The total size of the frames of these records, in bytes."""


class StoredRecord(NamedTuple):
    """A complete record that was read from a segment."""

    seq: int
    """The sequence number of the record: its position in the lane."""
    put_at: float
    """When the record was put, in seconds since 1970, by the clock of its writer."""
    key: str
    """The key under which the record was put."""
    tag: str
    """The label that the producer gave the record."""
    frames: Frames
    """The frames of the record. They are views of the buffer into which the segment was read."""
    nbytes: int
    """The total size of the frames, in bytes. The backlog counts this size."""
    stored_bytes: int
    """The number of bytes that the record takes in its segment."""


def pack_header(put_before: PutTotals) -> bytes:
    """Return the header of a segment. It contains the totals of the records before the segment."""
    body = _HEADER.pack(_MAGIC, put_before.records, put_before.nbytes, 0)
    return _HEADER.pack(_MAGIC, put_before.records, put_before.nbytes, crc32(body))


def unpack_header(data: bytes) -> PutTotals | None:
    """Return the totals of the records before this segment; None if the header is incomplete or damaged."""
    if len(data) < _HEADER.size:
        return None
    magic, records, nbytes, checksum = _HEADER.unpack_from(data)
    if magic != _MAGIC or crc32(_HEADER.pack(magic, records, nbytes, 0)) != checksum:
        return None
    return PutTotals(records, nbytes)


def pack_record(
    seq: int, put_at: float, key: bytes, tag: bytes, frames: Frames, put_before: PutTotals
) -> tuple[list[bytes | memoryview], int, PutTotals]:
    """Return the buffers to write for a record, their total length in bytes, and the put totals after the record."""
    sizes = [len(frame) if isinstance(frame, bytes) else frame.nbytes for frame in frames]
    nbytes = sum(sizes)
    put_after = PutTotals(put_before.records + bool(sizes), put_before.nbytes + nbytes)
    meta = struct.pack(f"<{len(sizes)}I", *sizes) + key + tag
    length = len(meta) + nbytes
    stored_bytes = _PREFIX.size + length + _TRAILER.size
    head = _PREFIX_BODY.pack(length, seq, put_at, len(key), len(tag), len(sizes)) + meta
    checksum = crc32(head)
    for frame in frames:
        checksum = crc32(frame, checksum)
    head = checksum.to_bytes(_CHECKSUM_BYTES, "little") + head
    return [head, *frames, _pack_trailer(stored_bytes, put_after)], stored_bytes, put_after


def stored_length(record_start: memoryview | bytes) -> int:
    """Return the number of bytes that the record with this start takes in its segment; 0 if the start is too short."""
    if len(record_start) < _PREFIX.size:
        return 0  # the writer could not write the whole record on a full disk, and has truncated the file just now
    return _PREFIX.size + int(_PREFIX.unpack_from(record_start)[1]) + _TRAILER.size


def put_time(prefix: bytes, default: float) -> float:
    """Return when the record was put, in seconds since 1970. Return the default if that time is not plausible."""
    put_at = float(_PREFIX.unpack_from(prefix)[3])
    return put_at if 0 < put_at < _LATEST_PUT_TIME else default


def unpack_record(data: memoryview, offset: int = 0) -> StoredRecord | None:
    """Return the record that begins at the byte `offset` of `data`. Return None if it is incomplete or damaged."""
    available = len(data) - offset - PREFIX_BYTES
    if available < 0:
        return None
    checksum, length, seq, put_at, key_length, tag_length, count = _PREFIX.unpack_from(data, offset)
    sizes_start = offset + PREFIX_BYTES
    key_start = sizes_start + 4 * count
    frames_start = key_start + key_length + tag_length
    end = sizes_start + length
    if available - length < TRAILER_BYTES or frames_start > end:
        return None
    stored_bytes = PREFIX_BYTES + length + TRAILER_BYTES
    if crc32(data[offset + _CHECKSUM_BYTES : end]) != checksum:
        return None
    if _TRAILER_START.unpack_from(data, end) != (_TRAILER_MAGIC, stored_bytes):
        return None
    sizes = struct.unpack_from(f"<{count}I", data, sizes_start)
    if sum(sizes) != end - frames_start:
        return None
    try:
        key = str(data[key_start : key_start + key_length], "utf-8", "surrogatepass")
        tag = str(data[key_start + key_length : frames_start], "utf-8", "surrogatepass") if tag_length else ""
    except UnicodeDecodeError:
        return None
    frames, frame_start = [], frames_start
    for size in sizes:
        frames.append(data[frame_start : frame_start + size])
        frame_start += size
    return StoredRecord(seq, put_at, key, tag, tuple(frames), frame_start - frames_start, stored_bytes)


def unpack_put_totals(trailer: memoryview | bytes) -> PutTotals | None:
    """Return the put totals from the trailer of a record. Return None if these bytes are not a valid trailer."""
    if len(trailer) < _TRAILER.size:
        return None
    magic, _, records, nbytes, checksum = _TRAILER.unpack_from(trailer)
    if magic != _TRAILER_MAGIC or crc32(memoryview(trailer)[: _TRAILER_BODY.size]) != checksum:
        return None
    return PutTotals(records, nbytes)


def _pack_trailer(stored_bytes: int, put_totals: PutTotals) -> bytes:
    body = _TRAILER_BODY.pack(_TRAILER_MAGIC, stored_bytes, put_totals.records, put_totals.nbytes)
    return body + crc32(body).to_bytes(_TRAILER.size - _TRAILER_BODY.size, "little")
