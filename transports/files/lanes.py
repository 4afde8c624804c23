"""Reads the records of one writer, segment after segment. It returns only complete records.

A writer may be in the middle of a record, on another machine, or dead. If the last bytes of a segment are not a
complete record, they are read again later. If these bytes do not change for `torn_tail_seconds`, a warning is logged
("torn tail"). If records are missing in a segment and the writer has begun a later one, QueueCorrupt is raised.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from transports.errors import QueueCorrupt
from transports.files.acks import LaneAcks
from transports.files.directory import SegmentName
from transports.files.records import (
    HEADER_BYTES,
    PREFIX_BYTES,
    StoredRecord,
    stored_length,
    unpack_header,
    unpack_record,
)

log = logging.getLogger(__name__)

READ_BYTES = 512 << 10


@dataclass(frozen=True, slots=True)
class LaneCursor:
    """The place in a lane from which the next record is read."""

    segment: SegmentName
    """The segment that contains the next record."""
    offset: int
    """The byte of the segment at which the next record begins."""
    seq: int
    """The sequence number of the next record."""


@dataclass(frozen=True, slots=True)
class SegmentChunk:
    """The records that one read returned, and the cursor after them."""

    segment: SegmentName
    """The segment from which the records were read."""
    records: Sequence[tuple[StoredRecord, int]]
    """The records, each with the byte of the segment at which it begins."""
    cursor: LaneCursor
    """The place at which the next read begins."""
    trailing_bytes: int
    """The number of bytes that follow the cursor. They are later records, or not a complete record yet."""
    writer_closed: bool = False
    """Whether the writer closed after these records, so that no more will follow."""


class LaneReader:
    """Reads the lane of one writer. Only `advance` moves the cursor; so a `read` that is cancelled loses no records."""

    def __init__(self, directory: Path, writer: str, torn_tail_seconds: float) -> None:
        self.writer = writer
        self.writer_closed = False
        self.last_read_bytes = 0
        self._directory = directory
        self._torn_tail_seconds = torn_tail_seconds
        self._segments: Sequence[SegmentName] = ()
        self._cursor: LaneCursor | None = None
        self._stalled: tuple[int, float] | None = None
        self._torn_tail_reported = False

    @property
    def cursor(self) -> LaneCursor:
        """The place from which the next record is read."""
        assert self._cursor is not None, "update_segments must be called before the lane is read"
        return self._cursor

    def update_segments(self, segments: Sequence[SegmentName], first_unacked: int) -> None:
        """Set the list of segments that exist now.

        If the segment of the cursor is not in the list, reading begins at the segment of the record `first_unacked`.
        Raises QueueCorrupt if no segment can contain that record.
        """
        self._segments = segments
        if self._cursor is None or self._cursor.segment not in segments:
            candidates = [segment for segment in segments if segment.first_seq <= first_unacked]
            if not candidates:
                raise QueueCorrupt(
                    f"{self._directory}: record {first_unacked} of writer {self.writer} is not acked, but its segment "
                    "does not exist. Restore the file, or move the other files of this writer away."
                )
            self._cursor = LaneCursor(candidates[-1], HEADER_BYTES, candidates[-1].first_seq)

    def finished_segments(self) -> list[tuple[SegmentName, int]]:
        """Return the segments to which the writer adds no more records, each with the number after its last record."""
        next_seqs = [segment.first_seq for segment in self._segments[1:]]
        if self.writer_closed:
            next_seqs.append(self.cursor.seq)
        return list(zip(self._segments, next_seqs, strict=False))

    def read(self) -> SegmentChunk:
        """Return the next records, without moving the cursor."""
        return read_chunk(self._directory, self.cursor)

    def advance(self, chunk: SegmentChunk) -> None:
        """Move the cursor to the end of a chunk. Raises QueueCorrupt if records after it are damaged or missing."""
        self.last_read_bytes = chunk.cursor.offset - self.cursor.offset
        self._cursor = chunk.cursor
        self.writer_closed = chunk.writer_closed
        if chunk.records or chunk.writer_closed:
            self._stalled = None
            return
        next_segment = next((s for s in self._segments if s.first_seq > chunk.cursor.segment.first_seq), None)
        if next_segment is not None and next_segment.first_seq == chunk.cursor.seq:
            self._cursor = LaneCursor(next_segment, HEADER_BYTES, chunk.cursor.seq)
            self._stalled = None
        elif chunk.trailing_bytes or next_segment is not None:
            self._check_stalled(chunk, next_segment)

    def _check_stalled(self, chunk: SegmentChunk, next_segment: SegmentName | None) -> None:
        now = time.monotonic()
        if self._stalled is None or self._stalled[0] != chunk.trailing_bytes:
            self._stalled = (chunk.trailing_bytes, now)
        if now - self._stalled[1] < self._torn_tail_seconds:
            return
        if next_segment is not None:
            raise QueueCorrupt(
                f"{_cursor_place(self._directory, chunk.cursor)}: record {chunk.cursor.seq} is damaged or missing, "
                f"but its writer continued with record {next_segment.first_seq}. To continue without the records of "
                f"writer {self.writer}, move its files away."
            )
        if not self._torn_tail_reported:
            self._torn_tail_reported = True
            _log_torn_tail(self._directory, chunk)


def read_chunk(directory: Path, cursor: LaneCursor) -> SegmentChunk:
    """Return the next complete records after a cursor, up to about 2 MiB. Return a larger first record alone."""
    path = f"{directory}/{cursor.segment}"
    available = os.stat(path).st_size - cursor.offset
    if available <= 0:
        return SegmentChunk(cursor.segment, (), cursor, trailing_bytes=0)
    fd = os.open(path, os.O_RDONLY)
    try:
        if cursor.offset == HEADER_BYTES and unpack_header(os.pread(fd, HEADER_BYTES, 0)) is None:
            return SegmentChunk(cursor.segment, (), cursor, trailing_bytes=available)
        first = stored_length(os.pread(fd, PREFIX_BYTES, cursor.offset))
        read_length = first if first > READ_BYTES else max(READ_BYTES, 4 * first)
        view = memoryview(os.pread(fd, min(read_length, available), cursor.offset))
    finally:
        os.close(fd)
    records: list[tuple[StoredRecord, int]] = []
    offset, seq, closed = 0, cursor.seq, False
    while not closed and (record := unpack_record(view, offset)) is not None and record.seq == seq:
        if record.frames:
            records.append((record, cursor.offset + offset))
            seq += 1
        else:  # the writer has closed
            closed = True
        offset += record.stored_bytes
    end_cursor = LaneCursor(cursor.segment, cursor.offset + offset, seq)
    return SegmentChunk(cursor.segment, records, end_cursor, available - offset, closed)


def read_lane(directory: Path, segments: Sequence[SegmentName]) -> Iterator[StoredRecord]:
    """Yield all complete records of a lane, from its first segment. Do not wait for the writer.

    Raises QueueCorrupt if records are damaged or missing between two segments.
    """
    for segment, next_segment in zip_longest(segments, segments[1:]):
        last_chunk = yield from read_segment(directory, segment, next_segment)
        if last_chunk.trailing_bytes:
            _log_torn_tail(directory, last_chunk)


def read_unacked(directory: Path, segments: Sequence[SegmentName], acks: LaneAcks) -> Iterator[StoredRecord]:
    """Yield the records of a lane that are not acked. Read `acks` after you list the segments."""
    for segment, next_segment in zip_longest(segments, segments[1:]):
        if next_segment is not None and next_segment.first_seq <= acks.acked_below:
            continue
        # If the segment was removed since it was listed, it has no unacked records.
        with contextlib.suppress(FileNotFoundError):
            for record in read_segment(directory, segment, next_segment):
                if not acks.is_acked(record.seq):
                    yield record


def read_segment(
    directory: Path, segment: SegmentName, next_segment: SegmentName | None
) -> Generator[StoredRecord, None, SegmentChunk]:
    """Yield the complete records of a segment. At the end, return the last chunk, which has no records.

    Raises QueueCorrupt if the next segment does not begin with the next record.
    """
    cursor = LaneCursor(segment, HEADER_BYTES, segment.first_seq)
    while (chunk := read_chunk(directory, cursor)).records:
        for record, _ in chunk.records:
            yield record
        cursor = chunk.cursor
    if next_segment is not None and next_segment.first_seq != cursor.seq:
        raise QueueCorrupt(
            f"{_cursor_place(directory, cursor)}: record {cursor.seq} is damaged or missing. To continue without the "
            f"records of writer {segment.writer}, move its files away."
        )
    return chunk


def read_record_at(path: Path, offset: int) -> StoredRecord:
    """Return the record at this byte of a file. It was read before. Raises QueueCorrupt if it is now damaged."""
    fd = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(fd, stored_length(os.pread(fd, PREFIX_BYTES, offset)), offset)
    finally:
        os.close(fd)
    record = unpack_record(memoryview(data))
    if record is None:
        raise QueueCorrupt(f"{path}, byte {offset}: the record was damaged after it was first read; check the disk")
    return record


def _cursor_place(directory: Path, cursor: LaneCursor) -> str:
    return f"{directory / str(cursor.segment)}, byte {cursor.offset}"


def _log_torn_tail(directory: Path, chunk: SegmentChunk) -> None:
    log.warning(
        "%s: torn tail: the last %d bytes are not a complete record; its writer may have been killed",
        _cursor_place(directory, chunk.cursor),
        chunk.trailing_bytes,
    )
