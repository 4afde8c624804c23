"""`file://…?replay=true`: a finished run read again from its start, without leases, acks or waiting at the end."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from transports.base import DeadLetter, Delivery, Frames, Peeked, Queue, QueueStats
from transports.errors import QueueClosed, QueueError
from transports.files.backlog import BacklogCounter
from transports.files.dead_letters import DeadLetterStore
from transports.files.directory import (
    QueueDirectory,
    SegmentName,
    StorageErrors,
    list_segments_by_writer,
    open_queue_directory,
)
from transports.files.lanes import read_lane
from transports.files.peeking import peek_stored
from transports.files.records import StoredRecord
from transports.urls import QueueOptions

_READ_AHEAD_RECORDS = 16


class ReplayQueue(Queue):
    """Gives every record that is still on the disk once, in the order of the puts within a lane, and then None."""

    ends = True

    def __init__(self, url: str, root: Path, options: QueueOptions, consume: Sequence[int] | None) -> None:
        super().__init__(url, options)
        self._queue_dir = open_queue_directory(url, root, options.partitions)
        self._backlog = BacklogCounter(self._queue_dir, retains=True)
        self._storage_errors = StorageErrors(url)
        with self._storage_errors:
            lanes = [
                _read_partition_lane(self._queue_dir, index, segments)
                for index in self._resolve_partitions(consume, self._queue_dir.partitions)
                for segments in list_segments_by_writer(self._queue_dir.partition_dir(index))
            ]
        self._records = heapq.merge(*lanes, key=lambda entry: entry[2].put_at)
        self._buffer: list[tuple[int, str, StoredRecord]] = []
        self._closed = False

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        raise QueueError(f"{self.url}: a queue that is replayed is read only")

    async def receive(self, *, timeout: float) -> Delivery | None:
        if self._closed:
            raise QueueClosed(f"{self.url}: this handle is closed")
        if not self._buffer:
            with self._storage_errors:
                self._buffer = await asyncio.to_thread(lambda: list(islice(self._records, _READ_AHEAD_RECORDS))[::-1])
        if not self._buffer:
            return None
        index, writer, record = self._buffer.pop()
        return Delivery(
            frames=record.frames,
            key=record.key,
            tag=record.tag,
            partition=index,
            lane=f"{index}.{writer}",
            position=record.seq,
            redelivered=False,
            epoch=0,
            queue=self,
        )

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Nothing: a replay does not change the run."""

    async def nack(self, delivery: Delivery, delay: float) -> None:
        raise QueueError(f"{self.url}: a replayed record comes once; keep it instead of giving it back")

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Nothing: the record stays where it is."""

    async def release(self) -> None:
        """Nothing was leased."""

    async def stats(self) -> QueueStats:
        with self._storage_errors:
            return await asyncio.to_thread(self._backlog.measure)

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        with self._storage_errors:
            return await asyncio.to_thread(DeadLetterStore(self._queue_dir).read, limit)

    async def discard(self, letter: DeadLetter) -> None:
        raise QueueError(f"{self.url}: a queue that is replayed is read only")

    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        with self._storage_errors:
            return await asyncio.to_thread(peek_stored, self._queue_dir, limit)

    async def aclose(self) -> None:
        self._closed = True


def _read_partition_lane(
    queue_dir: QueueDirectory, index: int, segments: list[SegmentName]
) -> Iterator[tuple[int, str, StoredRecord]]:
    for record in read_lane(queue_dir.partition_dir(index), segments):
        yield index, segments[0].writer, record
