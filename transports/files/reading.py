"""Reads a queue without leases: `peek_records`, and `file://…?replay=true`, which reads a whole run from its start.

The functions here never wait for a writer, and never change a file.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

from transports.base import DeadLetter, Delivery, Frames, Peeked, Queue, QueueStats
from transports.errors import QueueError
from transports.files.acks import AckLedger
from transports.files.backlog import BacklogCounter
from transports.files.dead_letters import DeadLetterStore
from transports.files.directory import (
    QueueDirectory,
    SegmentName,
    StorageErrors,
    list_segments_by_writer,
    open_queue_directory,
)
from transports.files.lanes import read_lane, read_unacked
from transports.files.leases import read_lease_states
from transports.files.records import StoredRecord
from transports.urls import QueueOptions

_READ_AHEAD_RECORDS = 16


@dataclass(frozen=True, slots=True)
class _Lane:
    """The segments of one writer in a partition."""

    partition: int
    directory: Path
    segments: list[SegmentName]

    @property
    def writer(self) -> str:
        return self.segments[0].writer


def peek_records(queue_dir: QueueDirectory, limit: int, *, with_acked: bool) -> list[Peeked]:
    """Return the oldest `limit` records of all partitions, by the clocks of their writers.

    Acked records are among them only if `with_acked` is true.
    """
    partitions = range(queue_dir.partitions)
    # Read the acks last: the claim of a record is removed after its ack, so a record without a claim has its ack.
    lanes = _list_lanes(queue_dir, partitions)
    claimed_names = [read_lease_states(queue_dir.claims_dir(index)).keys() for index in partitions]
    ledgers = [AckLedger.read(queue_dir.partition_dir(index)) for index in partitions]

    def read(lane: _Lane) -> Iterator[StoredRecord]:
        if with_acked:
            return read_lane(lane.directory, lane.segments)
        return read_unacked(lane.directory, lane.segments, ledgers[lane.partition].lane(lane.writer))

    def to_peeked(lane: _Lane, record: StoredRecord) -> Peeked:
        acks = ledgers[lane.partition].lane(lane.writer)
        acked = acks.is_acked(record.seq)
        claimed = f"{lane.writer}.{record.seq}" in claimed_names[lane.partition]
        delivered = acked or claimed or record.seq < acks.delivered_below
        return Peeked(record.frames, record.key, record.tag, lane.partition, record.seq, delivered, acked)

    return [to_peeked(lane, record) for lane, record in islice(_merge_by_time(lanes, read), limit)]


class ReplayQueue(Queue):
    """Delivers every record that is on the disk once, and then None. Within a lane, records keep their order."""

    ends = True

    def __init__(self, url: str, root: Path, options: QueueOptions, consume: Sequence[int] | None) -> None:
        super().__init__(url, options)
        self._queue_dir = open_queue_directory(url, root, options.partitions)
        self._backlog = BacklogCounter(self._queue_dir, retains=True)
        self._storage_errors = StorageErrors(url)
        partitions = self._resolve_partitions(consume, self._queue_dir.partitions)
        with self._storage_errors:
            lanes = _list_lanes(self._queue_dir, partitions)
        self._records = _merge_by_time(lanes, lambda lane: read_lane(lane.directory, lane.segments))
        self._buffer: list[tuple[_Lane, StoredRecord]] = []

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        """Raise QueueError, because a replay is read-only."""
        raise QueueError(f"{self.url}: a replay is read-only; open the queue without replay=true to put records")

    async def receive(self, *, timeout: float) -> Delivery | None:
        """Return the next record, or None after the last record. Never wait."""
        self._check_open()
        if not self._buffer:
            with self._storage_errors:
                self._buffer = await asyncio.to_thread(lambda: list(islice(self._records, _READ_AHEAD_RECORDS))[::-1])
        if not self._buffer:
            return None
        lane, record = self._buffer.pop()
        return Delivery(
            frames=record.frames,
            key=record.key,
            tag=record.tag,
            partition=lane.partition,
            lane=f"{lane.partition}.{lane.writer}",
            position=record.seq,
            redelivered=False,
            epoch=0,
            queue=self,
        )

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Do nothing, because a replay does not change the queue."""

    async def nack(self, delivery: Delivery, delay: float) -> None:
        """Raise QueueError, because a replay delivers each record only once."""
        raise QueueError(
            f"{self.url}: a replay delivers each record only once, so nack is not possible; keep the record instead"
        )

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Do nothing, because a replay does not change the queue."""

    async def release(self) -> None:
        """Do nothing, because a replay has no leases."""

    async def stats(self) -> QueueStats:
        """See `Queue.stats`."""
        with self._storage_errors:
            return await asyncio.to_thread(self._backlog.measure)

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        """See `Queue.dead_letters`."""
        with self._storage_errors:
            return await asyncio.to_thread(DeadLetterStore(self._queue_dir).read, limit)

    async def discard(self, letter: DeadLetter) -> None:
        """Raise QueueError, because a replay is read-only."""
        raise QueueError(
            f"{self.url}: a replay is read-only; open the queue without replay=true to discard dead letters"
        )

    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        """See `Queue.peek`."""
        with self._storage_errors:
            return await asyncio.to_thread(peek_records, self._queue_dir, limit, with_acked=True)

    async def _close(self) -> None:
        """Do nothing, because a replay keeps no files open."""


def _list_lanes(queue_dir: QueueDirectory, partitions: Iterable[int]) -> list[_Lane]:
    return [
        _Lane(index, queue_dir.partition_dir(index), segments)
        for index in partitions
        for segments in list_segments_by_writer(queue_dir.partition_dir(index))
    ]


def _merge_by_time(
    lanes: list[_Lane], read: Callable[[_Lane], Iterator[StoredRecord]]
) -> Iterator[tuple[_Lane, StoredRecord]]:
    return heapq.merge(*[zip(repeat(lane), read(lane), strict=False) for lane in lanes], key=lambda e: e[1].put_at)
