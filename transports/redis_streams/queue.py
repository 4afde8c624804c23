"""`redis://host/db?stream=name`: a durable queue in Redis Streams, as durable as the server's own files.

A stream with a consumer group is a partition. Its lease is a key that expires unless it is renewed, and an epoch that
fences whoever had it before; what the dead had pending is claimed by the next holder and comes first. An acked record
is deleted, an unacked one is never trimmed. Redis 6.2 and later, and Valkey.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex

from transports.base import DeadLetter, Delivery, Frames, Lease, Peeked, Queue, QueueStats, partition_of
from transports.errors import QueueClosed, QueueURLError
from transports.redis_streams import scripts
from transports.redis_streams.consumers import (
    Entry,
    StreamConsumer,
    StreamPartition,
    StreamSettings,
    StreamSingles,
    join_frames,
    text,
    utf8,
)
from transports.redis_streams.server import Server
from transports.urls import QueueOptions, parse_queue_url, without_password

_POLL = (0.002, 0.02)


@dataclass(frozen=True, slots=True)
class RedisOptions(QueueOptions):
    """What a redis:// URL may say besides."""

    stream: str = "rollout"
    """The name of the queue on its server."""
    lease_time: float = 10.0
    """Seconds without a renewal after which a consumer's partitions go to another."""
    ca_file: str = ""
    """For rediss://, the certificate authority to trust in the place of the system's."""


class RedisQueue(Queue):
    """A handle on a queue in a Redis server; connects with its first operation."""

    max_record_bytes = 500 << 20

    def __init__(self, url: str, *, lease: Lease, consume: Sequence[int] | None) -> None:
        _, options = parse_queue_url(url, RedisOptions)
        super().__init__(without_password(url), options)
        self._prefix = f"{{{options.stream}}}"
        self._asked_for = consume
        self._kind = StreamPartition if lease == "partition" else StreamSingles
        self._server = Server(url, options.ca_file)
        self._settings = StreamSettings(
            queue=self,
            server=self._server,
            prefix=self._prefix,
            holder=token_hex(8),
            lease_ms=round(1000 * options.lease_time),
        )
        self._renewal = self._server.renewal(options.lease_time)
        self._writer = f"{self._prefix}:writer:{token_hex(8)}"
        self._puts = 0
        self._partitions = 0
        self._consumers: dict[int, StreamConsumer] = {}
        self._turn: deque[StreamConsumer] = deque()
        self._opening, self._putting, self._receiving = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._fetch: asyncio.Task[Delivery | None] | None = None
        self._closed = False

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        nbytes = self._acceptable_nbytes(frames)
        await self._open()
        stream = f"{self._prefix}:p{partition_of(key, self._partitions)}"
        fields = {"k": utf8(key), "t": utf8(tag), "d": join_frames(frames)}
        keys = [stream, f"{self._prefix}:totals", self._writer]
        # One at a time: the server knows a repeated put by its number, which is that of this producer's last one.
        async with self._putting:
            self._puts += 1
            args = [self._puts, nbytes, self._hard_limit]
            accepted, records, backlog = await self._server.add(stream, fields, scripts.PUT, keys, args)
        if not accepted:
            raise self._queue_full(nbytes, records, backlog)

    async def receive(self, *, timeout: float) -> Delivery | None:
        deadline = time.monotonic() + timeout
        await self._open()
        pause, longest = _POLL
        while True:
            async with self._receiving:
                self._check_open()
                delivery = await self._fetched()
            left = deadline - time.monotonic()
            if delivery is not None or left <= 0:
                return delivery
            await asyncio.sleep(min(pause, left))
            pause = min(1.5 * pause, longest)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._open()
        stale = [delivery for delivery in deliveries if delivery.queue is not self]
        for index in {delivery.partition for delivery in deliveries}:
            group = [d for d in deliveries if d.partition == index and d.queue is self]
            stale += await self._consumers[index].settle(group)
        if stale:
            raise self._stale_lease(stale)

    async def nack(self, delivery: Delivery, delay: float) -> None:
        await self._open()
        if delivery.queue is not self or not await self._consumers[delivery.partition].give_back(delivery, delay):
            raise self._stale_lease([delivery])

    async def reject(self, delivery: Delivery, reason: str) -> None:
        await self._open()
        if delivery.queue is not self or not await self._consumers[delivery.partition].reject(delivery, reason):
            raise self._stale_lease([delivery])

    async def release(self) -> None:
        await self._open()
        await self._release()

    @property
    def holder(self) -> str:
        return self._settings.holder

    async def disown(self, holder: str) -> None:
        await self._open()
        for consumer in self._consumers.values():
            await consumer.disown(holder)

    async def stats(self) -> QueueStats:
        await self._open()
        streams = [f"{self._prefix}:p{index}" for index in range(self._partitions)]
        keys = [f"{self._prefix}:totals", f"{self._prefix}:dead", *streams]
        records, nbytes, redeliveries, dead, age_ms = map(int, await self._server.run(scripts.STATS, keys))
        return QueueStats(
            backlog_records=records,
            backlog_bytes=nbytes,
            oldest_age=age_ms / 1000,
            redeliveries=redeliveries,
            dead_letters=dead,
        )

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        await self._open()
        letters = []
        for id_, fields in await self._server.run(scripts.DEAD, [f"{self._prefix}:dead"], [limit]):
            entry = Entry(id_, False, fields[3], fields[5], fields[7])
            letters.append(DeadLetter(text(id_), entry.frames, text(entry.key), text(entry.tag), text(fields[1])))
        return letters

    async def discard(self, letter: DeadLetter) -> None:
        await self._open()
        await self._server.run(scripts.DISCARD, [f"{self._prefix}:dead"], [letter.id])

    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        await self._open()
        streams = [f"{self._prefix}:p{index}" for index in range(self._partitions)]
        keys = [key for stream in streams for key in (stream, f"{stream}:epoch", f"{stream}:delivered")]
        found = []
        for index, delivered, id_, fields in await self._server.run(scripts.PEEK, keys, [limit]):
            entry = Entry(id_, bool(delivered), fields[1], fields[3], fields[5])
            place = (index, entry.position, entry.redelivered)
            found.append(Peeked(entry.frames, text(entry.key), text(entry.tag), *place))
        return found

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._renewal.close)
        try:
            await self._release()
        finally:
            await self._server.aclose()

    async def _fetched(self) -> Delivery | None:
        """What `_next` brings, kept for the next caller when this one is cancelled: the server has lent it already."""
        if self._fetch is None:
            self._fetch = asyncio.create_task(self._next())
        await asyncio.wait([self._fetch])
        fetch, self._fetch = self._fetch, None
        return fetch.result()

    async def _next(self) -> Delivery | None:
        for _ in range(len(self._turn)):
            delivery = await self._turn[0].next()
            self._renewal.cover({key: value for consumer in self._turn for key, value in consumer.leases().items()})
            if delivery is not None:
                return delivery
            self._turn.rotate(-1)
        return None

    async def _release(self) -> None:
        async with self._receiving:
            if self._fetch is not None:
                await asyncio.wait([self._fetch])
                self._fetch = None
            for consumer in self._turn:
                await consumer.release()

    async def _open(self) -> None:
        """Create the queue where there is none yet, and learn how many partitions it has."""
        self._check_open()
        async with self._opening:
            if self._partitions:
                return
            wanted = self._options.partitions
            found = await self._server.run(scripts.CREATE, [f"{self._prefix}:queue"], [wanted or 1, self._prefix])
            if wanted not in (None, found):
                raise QueueURLError(f"{self.url}: the queue was created with partitions={found}")
            self._consumers = {index: self._kind(self._settings, index) for index in range(found)}
            self._turn.extend(self._consumers[index] for index in self._check_consume(self._asked_for, found))
            self._partitions = found

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosed(f"{self.url}: this handle is closed")
