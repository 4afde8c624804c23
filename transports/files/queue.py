"""`file:///dir`: a durable queue in a directory, which several machines may share.

Any number of processes put records. A partition has one consumer at a time, or many consumers that share its records.
When the lease of a consumer ends, another consumer gets its records. `transports.files` explains the files, and
`docs/queues.md` explains the options.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import unquote
from weakref import WeakValueDictionary

from transports.base import DeadLetter, Delivery, Frames, Lease, Peeked, Queue, QueueStats, partition_of
from transports.errors import QueueURLError
from transports.files.backlog import BacklogCounter
from transports.files.dead_letters import DeadLetterStore
from transports.files.directory import StorageErrors, open_queue_directory
from transports.files.leases import HeartbeatWatcher, LeaseHolder, expire_holder_leases
from transports.files.partition_consumer import PartitionConsumer
from transports.files.partition_reader import ConsumerSettings
from transports.files.reading import ReplayQueue, peek_records
from transports.files.record_consumer import SingleRecordConsumer
from transports.files.segments import SegmentWriter
from transports.files.syncing import AlwaysSync, BatchSync
from transports.redaction import hide_passwords
from transports.urls import QueueOptions, Size, parse_queue_url
from transports.wakeups import Wakeups

_MAX_INLINE_BYTES = 4 << 20
"""A record with more bytes is written in a thread, so that the event loop does not wait. For a smaller record, starting
the thread would take longer than the write."""
_PARTITION_POLL_SECONDS = (0.001, 0.01)
_RECORD_POLL_SECONDS = (0.001, 0.05)
_STATS_MAX_AGE_SECONDS = 0.25
_MAX_BURST_RECORDS = 32
_SEGMENT_BYTES = Size(64 << 20)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileOptions(QueueOptions):
    """The options of a file:// URL."""

    fsync: Literal["always", "batch"] = "batch"
    """Whether a record is synced to the disk before `put` returns, or soon after (`transports.files.syncing`)."""
    lease_time: float = 10.0
    """Seconds without a heartbeat after which another consumer gets the partitions or records."""
    segment_bytes: Size = _SEGMENT_BYTES
    """The number of bytes after which a new segment begins. A segment is removed when all its records are acked."""
    retain: bool | None = None
    """Whether acked records are kept for a replay. None: use the setting with which the queue was created."""
    replay: bool = False
    """Whether to read all records from the start, without leases and acks."""


_wakeups_by_directory: WeakValueDictionary[Path, Wakeups] = WeakValueDictionary()


def parse_file_url(url: str) -> tuple[Path, FileOptions]:
    """Return the directory and the options from a URL. Raises QueueURLError if the URL is wrong."""
    parts, options = parse_queue_url(url, FileOptions)
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute() or path == Path("/"):
        raise QueueURLError(
            f"{hide_passwords(url)}: expected file:// and an absolute directory, as in file:///data/run7/trajectories"
        )
    return path, options


def open_file_queue(url: str, *, lease: Lease, consume: Sequence[int] | None) -> Queue:
    """Return a handle on a queue in a directory, or on its replay. Raises QueueURLError if the URL is wrong."""
    path, options = parse_file_url(url)
    if options.replay:
        return ReplayQueue(url, path, options, consume)
    return FileQueue(url, path, options, lease, consume)


class FileQueue(Queue):
    """A handle on the queue in a directory."""

    def __init__(self, url: str, root: Path, options: FileOptions, lease: Lease, consume: Sequence[int] | None) -> None:
        super().__init__(url, options)
        self._queue_dir = open_queue_directory(url, root, options.partitions, retain=options.retain)
        self._wakeups = _wakeups_by_directory.setdefault(root.resolve(), Wakeups())
        self._lease_holder = LeaseHolder(self._queue_dir.holders_dir, options.lease_time)
        retains = self._queue_dir.retain if options.retain is None else options.retain
        settings = ConsumerSettings(
            queue=self,
            queue_dir=self._queue_dir,
            holder=self._lease_holder,
            heartbeats=HeartbeatWatcher(self._queue_dir.holders_dir, options.lease_time),
            lease_time=options.lease_time,
            retain=retains,
            segment_bytes=options.segment_bytes,
        )
        consumer_class = PartitionConsumer if lease == "partition" else SingleRecordConsumer
        partitions = self._resolve_partitions(consume, self._queue_dir.partitions)
        self._consumers: dict[int, PartitionConsumer | SingleRecordConsumer] = {
            index: consumer_class(settings, index) for index in partitions
        }
        self._rotation = deque(partitions)
        self._burst_count = 0
        self._poll_seconds = _PARTITION_POLL_SECONDS if lease == "partition" else _RECORD_POLL_SECONDS
        self._segment_bytes = options.segment_bytes
        self._writers: dict[int, SegmentWriter] = {}
        self._sync = AlwaysSync() if options.fsync == "always" else BatchSync()
        self._backlog_counter = BacklogCounter(self._queue_dir, retains=retains)
        self._dead_letters = DeadLetterStore(self._queue_dir)
        self._put_lock, self._measure_lock = asyncio.Lock(), asyncio.Lock()
        self._backlog_records = self._backlog_bytes = 0
        self._measured_at = -math.inf
        self._storage_errors = StorageErrors(url)

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        """See `Queue.put`."""
        nbytes = self._check_record_size(frames)
        # Only one put at a time. A thread writes each large record, and a later small record must not overtake it.
        async with self._put_lock:
            self._check_open()
            self._sync.raise_pending_error()
            if not self._has_room(nbytes):
                await self._check_room(nbytes)
            writer = self._writer(partition_of(key, self._queue_dir.partitions))
            if nbytes <= _MAX_INLINE_BYTES:
                writer.append(frames, key, tag)
            else:
                await _await_uncancelled(asyncio.to_thread(writer.append, frames, key, tag))
        self._backlog_records += 1
        self._backlog_bytes += nbytes
        self._wakeups.wake_all()
        await self._sync.after_write(writer)

    async def receive(self, *, timeout: float) -> Delivery | None:
        """See `Queue.receive`."""
        if (delivery := self._next_buffered() or await self._next_delivery()) is not None:
            return delivery
        deadline = time.monotonic() + timeout
        delay, max_delay = self._poll_seconds
        while delivery is None and (now := time.monotonic()) < deadline:
            wakeup = self._wakeups.register()
            try:
                delivery = await self._next_delivery()
                if delivery is None:
                    await self._wakeups.wait(wakeup, min(delay, deadline - now))
            finally:
                self._wakeups.unregister(wakeup)
            delay = min(1.5 * delay, max_delay)
        return delivery

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Queue.ack`."""
        self._check_open()
        by_partition: dict[int, list[Delivery]] = {}
        stale: list[Delivery] = []
        for delivery in deliveries:
            bucket = by_partition.setdefault(delivery.partition, []) if delivery.queue is self else stale
            bucket.append(delivery)
        with self._storage_errors:
            for index, partition_deliveries in by_partition.items():
                stale += self._consumers[index].ack(partition_deliveries)
        if stale:
            raise self._stale_lease_error(stale)

    async def nack(self, delivery: Delivery, delay: float) -> None:
        """See `Queue.nack`."""
        self._check_open()
        with self._storage_errors:
            if delivery.queue is not self or not self._consumers[delivery.partition].nack(delivery, delay):
                raise self._stale_lease_error([delivery])
        self._wakeups.wake_all()

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """See `Queue.reject`."""
        self._check_open()
        with self._storage_errors:
            if delivery.queue is not self or not self._consumers[delivery.partition].reject(delivery, reason):
                raise self._stale_lease_error([delivery])

    async def release(self) -> None:
        """See `Queue.release`."""
        self._check_open()
        with self._storage_errors:
            await self._release()

    async def partition_count(self) -> int:
        """See `Queue.partition_count`."""
        return self._queue_dir.partitions

    @property
    def holder(self) -> str:
        """See `Queue.holder`."""
        return self._lease_holder.name

    async def expire_leases(self, holder: str) -> None:
        """See `Queue.expire_leases`."""
        self._check_open()
        with self._storage_errors:
            await asyncio.to_thread(expire_holder_leases, self._queue_dir.holders_dir, holder)
        self._wakeups.wake_all()

    async def stats(self) -> QueueStats:
        """See `Queue.stats`."""
        self._check_open()
        async with self._measure_lock:
            with self._storage_errors:
                stats = await _await_uncancelled(asyncio.to_thread(self._backlog_counter.measure))
        self._backlog_records, self._backlog_bytes = stats.backlog_records, stats.backlog_bytes
        self._measured_at = time.monotonic()
        return stats

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        """See `Queue.dead_letters`."""
        self._check_open()
        with self._storage_errors:
            return await asyncio.to_thread(self._dead_letters.read, limit)

    async def discard(self, letter: DeadLetter) -> None:
        """See `Queue.discard`."""
        self._check_open()
        with self._storage_errors:
            # `requeue` has put the letter as a new record. Sync that record before the letter is removed.
            for writer in self._writers.values():
                await asyncio.to_thread(writer.sync)
            self._dead_letters.discard(letter)

    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        """See `Queue.peek`."""
        self._check_open()
        with self._storage_errors:
            return await asyncio.to_thread(peek_records, self._queue_dir, limit, with_acked=False)

    async def _close(self) -> None:
        writers = list(self._writers.values())
        try:
            with self._storage_errors:
                await self._release()
                await self._sync.close(writers)
        finally:
            for consumer in self._consumers.values():
                consumer.close()
            for writer in writers:
                writer.close()
            await asyncio.to_thread(self._lease_holder.close)
            self._wakeups.wake_all()
            with self._storage_errors:
                await asyncio.to_thread(self._dead_letters.close)

    def _next_buffered(self) -> Delivery | None:
        """Return the next buffered record of the current partition, or None. This is the fast path of `receive`."""
        self._check_open()
        if self._burst_count >= _MAX_BURST_RECORDS or not self._rotation:
            return None
        delivery = self._consumers[self._rotation[0]].next_buffered()
        self._burst_count += delivery is not None
        return delivery

    async def _next_delivery(self) -> Delivery | None:
        """Return the next record of any partition, or None. A partition with many records does not block the others."""
        for _ in range(len(self._rotation)):
            self._check_open()
            with self._storage_errors:
                delivery = await self._consumers[self._rotation[0]].next_delivery()
            self._burst_count += 1
            if delivery is None or self._burst_count >= _MAX_BURST_RECORDS:
                self._burst_count = 0
                self._rotation.rotate(-1)
            if delivery is not None:
                return delivery
        return None

    def _has_room(self, nbytes: int) -> bool:
        """Whether the record fits, according to a recent measurement and the later puts of this handle."""
        is_recent = time.monotonic() - self._measured_at < _STATS_MAX_AGE_SECONDS
        return is_recent and self._backlog_bytes + nbytes <= self._hard_limit

    async def _check_room(self, nbytes: int) -> None:
        """Measure the backlog again. Raises QueueFull if the record would exceed the hard limit."""
        await self.stats()
        if self._backlog_bytes + nbytes > self._hard_limit:
            raise self._queue_full_error(nbytes, self._backlog_records, self._backlog_bytes)

    def _writer(self, partition: int) -> SegmentWriter:
        if partition not in self._writers:
            self._writers[partition] = SegmentWriter(self._queue_dir.partition_dir(partition), self._segment_bytes)
        return self._writers[partition]

    async def _release(self) -> None:
        for consumer in self._consumers.values():
            await consumer.release()
        self._wakeups.wake_all()


async def _await_uncancelled(awaitable: Awaitable[T]) -> T:
    """Return the result of a thread. If cancelled, first wait for the thread, because it still uses its arguments."""
    task = asyncio.ensure_future(awaitable)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
