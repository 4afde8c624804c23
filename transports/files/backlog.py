"""Counts the backlog of a queue, in any process: the records that were put, minus the records that are acked.

The end of each lane contains the number of records that its writer has put.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from transports.base import QueueStats
from transports.files.acks import AckLedger, LaneAcks
from transports.files.directory import QueueDirectory, SegmentName, list_segments_by_writer
from transports.files.records import (
    HEADER_BYTES,
    PREFIX_BYTES,
    TRAILER_BYTES,
    PutTotals,
    put_time,
    stored_length,
    unpack_header,
    unpack_put_totals,
)


class _RecordBoundary(NamedTuple):
    """A place between two records of a segment, and the totals of the records before it."""

    segment: SegmentName
    offset: int
    put_before: PutTotals


class BacklogCounter:
    """Measures the backlog for one handle. Only one thread may use it at a time.

    It remembers how far it has read, so that it reads no record twice. With `retains`, it also counts the acked records
    that the queue keeps.
    """

    def __init__(self, queue_dir: QueueDirectory, *, retains: bool) -> None:
        self._queue_dir = queue_dir
        self._retains = retains
        self._ledgers = [AckLedger(queue_dir.partition_dir(index)) for index in range(queue_dir.partitions)]
        self._dead_ledgers = [AckLedger(queue_dir.dead_letters_dir(index)) for index in range(queue_dir.partitions)]
        self._last_boundaries: dict[str, _RecordBoundary] = {}
        self._oldest_boundaries: dict[str, _RecordBoundary] = {}

    def measure(self) -> QueueStats:
        """Return the numbers of records in the queue now."""
        records = nbytes = dead_letters = redeliveries = retained = 0
        oldest = now = time.time()
        for index, ledger in enumerate(self._ledgers):
            directory = self._queue_dir.partition_dir(index)
            # List the segments first, and then refresh the ledger, so that it has all acks for these segments.
            lanes = list_segments_by_writer(directory)
            ledger.refresh()
            redeliveries += ledger.redeliveries
            dead_letters += self._count_dead_letters(index)
            for segments in lanes:
                acks = ledger.lanes.get(segments[0].writer, LaneAcks())
                put_totals = self._put_totals(directory, segments)
                if put_totals.records > acks.records:
                    records += put_totals.records - acks.records
                    nbytes += put_totals.nbytes - acks.nbytes
                    oldest = min(oldest, self._record_put_time(directory, segments, acks.acked_below, now))
                if self._retains:
                    retained += max(0, min(acks.records, put_totals.records) - segments[0].first_seq)
        return QueueStats(
            backlog_records=records,
            backlog_bytes=nbytes,
            oldest_age=now - oldest if records else 0.0,
            redeliveries=redeliveries,
            dead_letters=dead_letters,
            retained_records=retained,
        )

    def _count_dead_letters(self, index: int) -> int:
        directory, ledger = self._queue_dir.dead_letters_dir(index), self._dead_ledgers[index]
        lanes = list_segments_by_writer(directory)
        if lanes:
            ledger.refresh()
        return sum(
            self._put_totals(directory, segments).records - ledger.lane(segments[0].writer).records
            for segments in lanes
        )

    def _put_totals(self, directory: Path, segments: list[SegmentName]) -> PutTotals:
        """Return the totals of the records that the writer of these segments has put, up to the last complete one."""
        for segment in reversed(segments):
            with _open_segment(directory / str(segment)) as (fd, size):
                totals = unpack_put_totals(os.pread(fd, TRAILER_BYTES, max(0, size - TRAILER_BYTES)))
                if totals is not None:
                    return totals
                # The last record is incomplete, so the file does not end with a trailer. Go from record to record.
                boundary = _first_boundary(fd, segment, self._last_boundaries.get(segment.writer))
                if boundary is None:
                    continue
                while (following := _next_boundary(fd, boundary, size)) is not None:
                    boundary = following
                self._last_boundaries[segment.writer] = boundary
                return boundary.put_before
        return PutTotals(0, 0)

    def _record_put_time(self, directory: Path, segments: list[SegmentName], seq: int, default: float) -> float:
        """Return when the record `seq` was put, by its writer's clock. Return the default if that is not known."""
        for segment in reversed(segments):
            if segment.first_seq > seq:
                continue
            with _open_segment(directory / str(segment)) as (fd, size):
                boundary = _first_boundary(fd, segment, self._oldest_boundaries.get(segment.writer))
                while boundary is not None and boundary.put_before.records < seq:
                    self._oldest_boundaries[segment.writer] = boundary
                    boundary = _next_boundary(fd, boundary, size)
                prefix = b"" if boundary is None else os.pread(fd, PREFIX_BYTES, boundary.offset)
                return put_time(prefix, default) if len(prefix) == PREFIX_BYTES else default
        return default


def _first_boundary(fd: int, segment: SegmentName, cached: _RecordBoundary | None) -> _RecordBoundary | None:
    if cached is not None and cached.segment == segment:
        return cached
    put_before = unpack_header(os.pread(fd, HEADER_BYTES, 0))
    return None if put_before is None else _RecordBoundary(segment, HEADER_BYTES, put_before)


def _next_boundary(fd: int, boundary: _RecordBoundary, size: int) -> _RecordBoundary | None:
    """Return the boundary after the next record, or None if that record is incomplete."""
    prefix = os.pread(fd, PREFIX_BYTES, boundary.offset)
    if len(prefix) < PREFIX_BYTES or boundary.offset + stored_length(prefix) > size:
        return None
    end = boundary.offset + stored_length(prefix)
    put_totals = unpack_put_totals(os.pread(fd, TRAILER_BYTES, end - TRAILER_BYTES))
    return None if put_totals is None else _RecordBoundary(boundary.segment, end, put_totals)


@contextmanager
def _open_segment(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the file descriptor and the size of a segment. If the segment was removed just now, the size is 0."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # never block on a named pipe
    except FileNotFoundError:
        fd = os.open(os.devnull, os.O_RDONLY)
    try:
        yield fd, os.fstat(fd).st_size
    finally:
        os.close(fd)
