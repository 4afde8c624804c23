"""Reading the records of one writer, segment after segment, each whole or not at all.

A writer may be in the middle of a record, on another machine, or dead: a tail that is no whole record is never returned
and looked at again later. When it has stayed so for the grace time it is reported as torn; when the writer has gone on
in another segment although records are missing from this one, it is QueueCorrupt.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from transports.errors import QueueCorrupt
from transports.files.directory import SegmentName
from transports.files.records import HEADER_BYTES, PREFIX_BYTES, Record, stored_length, unpack_header, unpack_record

log = logging.getLogger(__name__)

READ_BYTES = 512 << 10


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a lane was read: the next record has this sequence number and begins there, once it is written."""

    segment: SegmentName
    offset: int
    seq: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one read brought of one segment, and the cursor after it."""

    segment: SegmentName
    records: Sequence[tuple[Record, int]]
    """Each with its offset in the segment."""
    cursor: Cursor
    rest: int
    """Bytes that lie behind the cursor and are no whole record yet."""
    closed: bool = False


class Lane:
    """The reader of one writer. `read` leaves it as it is; `advance` moves on, so an abandoned read loses nothing."""

    def __init__(self, directory: Path, writer: str, grace: float) -> None:
        self.writer = writer
        self.closed = False
        self.last_read_bytes = 0
        self._directory = directory
        self._grace = grace
        self._segments: Sequence[SegmentName] = ()
        self._cursor: Cursor | None = None
        self._stuck: tuple[int, float] | None = None
        self._reported = False

    @property
    def cursor(self) -> Cursor:
        assert self._cursor is not None, "a lane is read after it was shown its segments"
        return self._cursor

    def see(self, segments: Sequence[SegmentName], unacked: int) -> None:
        """Take note of the segments there are by now; read from record `unacked` on if they are news altogether."""
        self._segments = segments
        if self._cursor is None or self._cursor.segment not in segments:
            reached = [segment for segment in segments if segment.first_seq <= unacked]
            if not reached:
                raise QueueCorrupt(
                    f"{self._directory}: record {unacked} of writer {self.writer} is not acked, but its segment is gone"
                )
            self._cursor = Cursor(reached[-1], HEADER_BYTES, reached[-1].first_seq)

    def finished_segments(self) -> list[tuple[SegmentName, int]]:
        """Segments that the writer has left for good, each with the sequence number that follows its last."""
        following = [segment.first_seq for segment in self._segments[1:]]
        if self.closed:
            following.append(self.cursor.seq)
        return list(zip(self._segments, following, strict=False))

    def read(self) -> Chunk:
        return read_chunk(self._directory, self.cursor)

    def advance(self, chunk: Chunk) -> None:
        """Go on behind what was read. Raises QueueCorrupt where nothing can come from there any more."""
        self.last_read_bytes = chunk.cursor.offset - self.cursor.offset
        self._cursor = chunk.cursor
        self.closed = chunk.closed
        if chunk.records or chunk.closed:
            self._stuck = None
            return
        later = next((s for s in self._segments if s.first_seq > chunk.cursor.segment.first_seq), None)
        if later is not None and later.first_seq == chunk.cursor.seq:
            self._cursor = Cursor(later, HEADER_BYTES, chunk.cursor.seq)
            self._stuck = None
        elif chunk.rest or later is not None:
            self._note_stuck(chunk, later)

    def _note_stuck(self, chunk: Chunk, later: SegmentName | None) -> None:
        now = time.monotonic()
        if self._stuck is None or self._stuck[0] != chunk.rest:
            self._stuck = (chunk.rest, now)
        if now - self._stuck[1] < self._grace:
            return
        where = f"{self._directory / str(chunk.cursor.segment)}, byte {chunk.cursor.offset}"
        if later is not None:
            raise QueueCorrupt(
                f"{where}: record {chunk.cursor.seq} is damaged or missing, although its writer went on with record "
                f"{later.first_seq}. Move the files of writer {self.writer} away to go on without them."
            )
        if not self._reported:
            self._reported = True
            log.warning("%s: the last %d bytes are no whole record and were cut off: torn tail", where, chunk.rest)


def read_chunk(directory: Path, cursor: Cursor) -> Chunk:
    """The whole records from a cursor on: at least one if there is one, and not many megabytes."""
    path = f"{directory}/{cursor.segment}"
    available = os.stat(path).st_size - cursor.offset
    if available <= 0:
        return Chunk(cursor.segment, (), cursor, rest=0)
    fd = os.open(path, os.O_RDONLY)
    try:
        if cursor.offset == HEADER_BYTES and unpack_header(os.pread(fd, HEADER_BYTES, 0)) is None:
            return Chunk(cursor.segment, (), cursor, rest=available)
        first = stored_length(os.pread(fd, PREFIX_BYTES, cursor.offset)) if available >= PREFIX_BYTES else 0
        wanted = first if first > READ_BYTES else max(READ_BYTES, 4 * first)
        view = memoryview(os.pread(fd, min(wanted, available), cursor.offset))
    finally:
        os.close(fd)
    records: list[tuple[Record, int]] = []
    at, seq, closed = 0, cursor.seq, False
    while not closed and (record := unpack_record(view, at)) is not None and record.seq == seq:
        if record.frames:
            records.append((record, cursor.offset + at))
            seq += 1
        else:  # its writer has closed
            closed = True
        at += record.stored_bytes
    after = Cursor(cursor.segment, cursor.offset + at, seq)
    return Chunk(cursor.segment, records, after, available - at, closed)


def read_lane(directory: Path, segments: Sequence[SegmentName]) -> Iterator[Record]:
    """Every record that is left of a lane whose writer is not waited for, from its first segment on."""
    for segment, following in zip_longest(segments, segments[1:]):
        end = yield from read_segment(directory, segment, following)
        if end.rest:
            where = f"{directory / str(segment)}, byte {end.cursor.offset}"
            log.warning("%s: the last %d bytes are no whole record and were cut off: torn tail", where, end.rest)


def read_segment(
    directory: Path, segment: SegmentName, following: SegmentName | None
) -> Generator[Record, None, Chunk]:
    """Its whole records, and the chunk without any at their end. QueueCorrupt if the following does not follow them."""
    cursor = Cursor(segment, HEADER_BYTES, segment.first_seq)
    while (chunk := read_chunk(directory, cursor)).records:
        for record, _ in chunk.records:
            yield record
        cursor = chunk.cursor
    if following is not None and following.first_seq != cursor.seq:
        where = f"{directory / str(segment)}, byte {cursor.offset}"
        raise QueueCorrupt(f"{where}: record {cursor.seq} is damaged or missing")
    return chunk


def read_at(path: Path, offset: int) -> Record:
    """A record that was read before, again."""
    fd = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(fd, stored_length(os.pread(fd, PREFIX_BYTES, offset)), offset)
    finally:
        os.close(fd)
    record = unpack_record(memoryview(data))
    if record is None:
        raise QueueCorrupt(f"{path}, byte {offset}: the record was damaged since it was first read")
    return record
