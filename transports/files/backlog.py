"""How much a queue holds, as any process sees it: what the ends of the lanes say was put, less what was acked."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from transports.base import QueueStats
from transports.files.acks import LaneAcks, Ledger
from transports.files.directory import Layout, SegmentName, list_lanes
from transports.files.records import (
    HEADER_BYTES,
    PREFIX_BYTES,
    TRAILER_BYTES,
    Tally,
    put_time,
    stored_length,
    unpack_header,
    unpack_tally,
)


class _Step(NamedTuple):
    """A place between two records of a segment, and what its writer had put before it."""

    segment: SegmentName
    offset: int
    tally: Tally


class Backlog:
    """Counts on behalf of one handle. Remembers how far it walked, so that nothing is walked twice; for one thread."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._ledgers = [Ledger(layout.partition(index)) for index in range(layout.partitions)]
        self._dead = [Ledger(layout.dead(index)) for index in range(layout.partitions)]
        self._ends: dict[str, _Step] = {}
        self._oldest: dict[str, _Step] = {}

    def measure(self) -> QueueStats:
        records = nbytes = dead = redeliveries = 0
        oldest = now = time.time()
        for index, ledger in enumerate(self._ledgers):
            directory = self._layout.partition(index)
            # Listed before the ledger is read: what is seen and settled is then known to be settled.
            lanes = list_lanes(directory)
            ledger.refresh()
            redeliveries += ledger.redeliveries
            dead += self._dead_letters(index)
            for names in lanes:
                acks = ledger.lanes.get(names[0].writer, LaneAcks())
                put = self._tally(directory, names)
                if put.records > acks.records:
                    records += put.records - acks.records
                    nbytes += put.nbytes - acks.nbytes
                    oldest = min(oldest, self._put_at(directory, names, acks.below, now))
        return QueueStats(
            backlog_records=records,
            backlog_bytes=nbytes,
            oldest_age=now - oldest if records else 0.0,
            redeliveries=redeliveries,
            dead_letters=dead,
        )

    def _dead_letters(self, index: int) -> int:
        directory, ledger = self._layout.dead(index), self._dead[index]
        lanes = list_lanes(directory)
        if lanes:
            ledger.refresh()
        return sum(self._tally(directory, names).records - ledger.lane(names[0].writer).records for names in lanes)

    def _tally(self, directory: Path, names: list[SegmentName]) -> Tally:
        """What the writer of these segments has put, up to its last whole record."""
        for name in reversed(names):
            with _opened(directory / str(name)) as (fd, size):
                end = unpack_tally(os.pread(fd, TRAILER_BYTES, max(0, size - TRAILER_BYTES)))
                if end is not None:
                    return end
                # The last record is being written, or was torn: go from record to record instead.
                step = _start(fd, name, self._ends.get(name.writer))
                if step is None:
                    continue
                while (following := _step_over(fd, step, size)) is not None:
                    step = following
                self._ends[name.writer] = step
                return step.tally
        return Tally(0, 0)

    def _put_at(self, directory: Path, names: list[SegmentName], seq: int, otherwise: float) -> float:
        """When a record was put, by its writer's clock."""
        for name in reversed(names):
            if name.first_seq > seq:
                continue
            with _opened(directory / str(name)) as (fd, size):
                step = _start(fd, name, self._oldest.get(name.writer))
                while step is not None and step.tally.records < seq:
                    self._oldest[name.writer] = step
                    step = _step_over(fd, step, size)
                prefix = b"" if step is None else os.pread(fd, PREFIX_BYTES, step.offset)
                return put_time(prefix) if len(prefix) == PREFIX_BYTES else otherwise
        return otherwise


def _start(fd: int, segment: SegmentName, known: _Step | None) -> _Step | None:
    if known is not None and known.segment == segment:
        return known
    before = unpack_header(os.pread(fd, HEADER_BYTES, 0))
    return None if before is None else _Step(segment, HEADER_BYTES, before)


def _step_over(fd: int, step: _Step, size: int) -> _Step | None:
    """Behind the record at this place, or None where there is no whole one."""
    prefix = os.pread(fd, PREFIX_BYTES, step.offset)
    if len(prefix) < PREFIX_BYTES or step.offset + stored_length(prefix) > size:
        return None
    end = step.offset + stored_length(prefix)
    tally = unpack_tally(os.pread(fd, TRAILER_BYTES, end - TRAILER_BYTES))
    return None if tally is None else _Step(step.segment, end, tally)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """The file and its size; an empty one where it was reclaimed a moment ago."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        fd = os.open(os.devnull, os.O_RDONLY)
    try:
        yield fd, os.fstat(fd).st_size
    finally:
        os.close(fd)
