"""`redis://host/db?stream=name`: a queue in Redis Streams. It is as durable as the files of the server.

A partition is a stream with a consumer group. Its lease is a key, which expires if it is not renewed. An epoch fences
the previous holder: the server refuses the acks of that holder. The next holder first gets the records that the
previous one has not acked. An acked record is deleted; an unacked record never is. The server must be Redis 6.2 or
later, or Valkey.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from secrets import token_hex

from transports.base import DeadLetter, Delivery, Frames, Lease, Peeked, Queue, QueueStats, partition_of
from transports.errors import QueueCorrupt, QueueURLError
from transports.redis_streams import scripts
from transports.redis_streams.consumers import (
    StreamConsumer,
    StreamPartitionConsumer,
    StreamSettings,
    StreamSingleRecordConsumer,
)
from transports.redis_streams.entries import (
    ForeignEntry,
    StreamEntry,
    encode_text,
    join_frames,
    read_dead_letter,
    read_entry,
)
from transports.redis_streams.options import parse_redis_url
from transports.redis_streams.server import RedisClient, damaged_key_error

_POLL_SECONDS = (0.002, 0.02)


class RedisQueue(Queue):
    """A handle on a queue in a Redis server. Its first operation connects to the server."""

    max_record_bytes = 500 << 20

    def __init__(self, url: str, *, lease: Lease, consume: Sequence[int] | None) -> None:
        options = parse_redis_url(url)
        super().__init__(url, options)
        self._prefix = f"{{{options.stream}}}"
        self._consume = consume
        self._consumer_class = StreamPartitionConsumer if lease == "partition" else StreamSingleRecordConsumer
        self._server = RedisClient(url, options.ca_file)
        self._settings = StreamSettings(
            queue=self,
            server=self._server,
            prefix=self._prefix,
            holder=token_hex(8),
            lease_ms=round(1000 * options.lease_time),
        )
        self._lease_renewer = self._server.new_lease_renewer(options.lease_time)
        self._writer_key = f"{self._prefix}:writer:{token_hex(8)}"
        self._put_count = 0
        self._partitions = 0
        self._consumers: dict[int, StreamConsumer] = {}
        self._rotation: deque[StreamConsumer] = deque()
        self._open_lock, self._put_lock, self._receive_lock = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._fetch_task: asyncio.Task[Delivery | None] | None = None

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        """See `Queue.put`."""
        nbytes = self._check_record_size(frames)
        await self._open()
        stream = f"{self._prefix}:p{partition_of(key, self._partitions)}"
        fields = {"k": encode_text(key), "t": encode_text(tag), "d": join_frames(frames)}
        keys = [stream, f"{self._prefix}:totals", self._writer_key]
        # One put at a time: the server compares only with this producer's last put to recognise a repeated one.
        async with self._put_lock:
            self._put_count += 1
            args = [self._put_count, nbytes, self._hard_limit]
            accepted, records, backlog = await self._server.add_entry(stream, fields, scripts.ACCOUNT_PUT, keys, args)
        if not accepted:
            raise self._queue_full_error(nbytes, records, backlog)

    async def receive(self, *, timeout: float) -> Delivery | None:
        """See `Queue.receive`."""
        deadline = time.monotonic() + timeout
        await self._open()
        delay, max_delay = _POLL_SECONDS
        while True:
            async with self._receive_lock:
                self._check_open()
                delivery = await self._fetch_next()
            remaining = deadline - time.monotonic()
            if delivery is not None or remaining <= 0:
                return delivery
            await asyncio.sleep(min(delay, remaining))
            delay = min(1.5 * delay, max_delay)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Queue.ack`."""
        await self._open()
        stale = [delivery for delivery in deliveries if delivery.queue is not self]
        for index in {delivery.partition for delivery in deliveries}:
            group = [d for d in deliveries if d.partition == index and d.queue is self]
            stale += await self._consumers[index].ack(group)
        if stale:
            raise self._stale_lease_error(stale)

    async def nack(self, delivery: Delivery, delay: float) -> None:
        """See `Queue.nack`."""
        await self._open()
        if delivery.queue is not self or not await self._consumers[delivery.partition].nack(delivery, delay):
            raise self._stale_lease_error([delivery])

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """See `Queue.reject`."""
        await self._open()
        if delivery.queue is not self or not await self._consumers[delivery.partition].reject(delivery, reason):
            raise self._stale_lease_error([delivery])

    async def release(self) -> None:
        """See `Queue.release`."""
        await self._open()
        await self._release()

    async def partition_count(self) -> int:
        """See `Queue.partition_count`."""
        await self._open()
        return self._partitions

    @property
    def holder(self) -> str:
        """See `Queue.holder`."""
        return self._settings.holder

    async def expire_leases(self, holder: str) -> None:
        """See `Queue.expire_leases`."""
        await self._open()
        for consumer in self._consumers.values():
            await consumer.expire_leases(holder)

    async def stats(self) -> QueueStats:
        """See `Queue.stats`."""
        await self._open()
        streams = [f"{self._prefix}:p{index}" for index in range(self._partitions)]
        keys = [f"{self._prefix}:totals", f"{self._prefix}:dead", *streams]
        counts = await self._server.run(scripts.STATS, keys)
        try:
            records, nbytes, redeliveries, dead, age_ms = map(int, counts)
        except ValueError as error:
            raise QueueCorrupt(
                f"{self.url}: the key {self._prefix}:totals is damaged: {error}. Find the other program that writes to "
                "it."
            ) from error
        return QueueStats(
            # The count can be negative after an ack of records that another program had put.
            backlog_records=max(0, records),
            backlog_bytes=max(0, nbytes),
            oldest_age=age_ms / 1000,
            redeliveries=redeliveries,
            dead_letters=dead,
        )

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        """See `Queue.dead_letters`."""
        await self._open()
        letters = await self._server.run(scripts.DEAD_LETTERS, [f"{self._prefix}:dead"], [limit])
        return [read_dead_letter(id_, fields) for id_, fields in letters]

    async def discard(self, letter: DeadLetter) -> None:
        """See `Queue.discard`."""
        await self._open()
        await self._server.run(scripts.DISCARD_DEAD_LETTER, [f"{self._prefix}:dead"], [letter.id])

    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        """See `Queue.peek`."""
        await self._open()
        streams = [f"{self._prefix}:p{index}" for index in range(self._partitions)]
        keys = [key for stream in streams for key in (stream, f"{stream}:epoch", f"{stream}:delivered")]
        peeked = []
        for index, delivered, id_, fields in await self._server.run(scripts.PEEK, keys, [limit]):
            entry: StreamEntry | ForeignEntry
            try:
                entry = read_entry(id_, fields)
                position = entry.position
            except ForeignEntry as foreign:
                entry, position = foreign, 0
            peeked.append(Peeked(entry.frames, entry.key, entry.tag, index, position, bool(delivered)))
        return peeked

    async def _close(self) -> None:
        await asyncio.to_thread(self._lease_renewer.close)
        try:
            await self._release()
        finally:
            await self._server.aclose()

    async def _fetch_next(self) -> Delivery | None:
        """Return the result of `_next_delivery`. If this call is cancelled, the next call gets the leased record."""
        if self._fetch_task is None:
            self._fetch_task = asyncio.create_task(self._next_delivery())
        await asyncio.wait([self._fetch_task])
        task, self._fetch_task = self._fetch_task, None
        return task.result()

    async def _next_delivery(self) -> Delivery | None:
        for _ in range(len(self._rotation)):
            delivery = await self._rotation[0].next_delivery()
            self._lease_renewer.set_leases(
                {key: value for consumer in self._rotation for key, value in consumer.leases().items()}
            )
            if delivery is not None:
                return delivery
            self._rotation.rotate(-1)
        return None

    async def _release(self) -> None:
        async with self._receive_lock:
            if self._fetch_task is not None:
                await asyncio.wait([self._fetch_task])
                self._fetch_task = None
            for consumer in self._rotation:
                await consumer.release()

    async def _open(self) -> None:
        """Create the queue if it does not exist, and read its number of partitions. Do nothing after the first call."""
        self._check_open()
        async with self._open_lock:
            if self._partitions:
                return
            requested = self._options.partitions
            partitions, problem = await self._server.run(
                scripts.CREATE_QUEUE, [f"{self._prefix}:queue"], [requested or 1, self._prefix]
            )
            if problem:
                raise damaged_key_error(self.url, problem)
            if requested not in (None, partitions):
                raise QueueURLError(f"{self.url}: the queue was created with partitions={partitions}; use that number")
            self._consumers = {index: self._consumer_class(self._settings, index) for index in range(partitions)}
            self._rotation.extend(
                self._consumers[index] for index in self._resolve_partitions(self._consume, partitions)
            )
            self._partitions = partitions
