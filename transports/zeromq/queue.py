"""`zmq://host:port`: the lowest latency between machines, acked, and durable only as long as somebody keeps a record.

The first handle to bind the address serves the queue from its own memory, best the trainer's, which then has records in
its hands when they arrive. Every other handle keeps what it put until it is settled: a hub that is started anew gets it
again. What is lost is lost when both are gone, the hub and the handle that put it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex

import zmq

from transports.base import DeadLetter, Delivery, Frames, Lease, Peeked, Queue, QueueStats
from transports.errors import QueueClosed, QueueStorageError, QueueURLError
from transports.urls import QueueOptions, parse_queue_url
from transports.zeromq.hub import Hub
from transports.zeromq.links import Lent, Link, Token, record_name
from transports.zeromq.remote import PATIENCE_SECONDS, RemoteLink

log = logging.getLogger(__name__)

_MEASURE_SECONDS = 0.25
_DEFERENCE_SECONDS = 0.2
_NOT_OURS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENODEV)
"""Another serves at this address, or another machine does."""


@dataclass(frozen=True, slots=True)
class ZmqOptions(QueueOptions):
    """What a zmq:// URL may say besides."""

    serve: bool = True
    """Whether this handle may become the hub. Say false for workers that start before the trainer or outlive it."""
    lease_time: float = 10.0
    """Seconds without a sign of life after which a consumer's partitions go to another."""
    certificate: str = ""
    """A CURVE certificate file: encrypts, and proves the hub to the others. Who serves needs its secret part."""


@dataclass(frozen=True, slots=True, eq=False)
class _ZmqDelivery(Delivery):
    token: Token


class ZmqQueue(Queue):
    """A handle that serves, or one that is linked to another's hub; which, its first operation finds out."""

    def __init__(self, url: str, *, lease: Lease, consume: Sequence[int] | None) -> None:
        parts, options = parse_queue_url(url, ZmqOptions)
        super().__init__(url, options)
        if parts.hostname is None or parts.port is None or parts.path not in ("", "/"):
            raise QueueURLError(f"{url}: expected a host and a port, as in zmq://10.0.0.5:5555")
        self._host, self._port = parts.hostname, parts.port
        self._zmq = options
        self._lease: Lease = lease
        self._asked_for = consume
        self._producer = token_hex(8)
        self._puts = 0
        self._hub: Hub | None = None
        self._link: Link | None = None
        self._linking = asyncio.Lock()
        self._backlog = (0, 0)
        self._measured_at = float("-inf")
        self._closed = False

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        nbytes = self._acceptable_nbytes(frames)
        link = await self._linked()
        await self._make_room(nbytes)
        self._puts += 1
        self._backlog = (self._backlog[0] + 1, self._backlog[1] + nbytes)
        owned = tuple(bytes(frame) for frame in frames)
        await link.put(owned, key, record_name(self._producer, self._puts - 1, tag))

    async def receive(self, *, timeout: float) -> Delivery | None:
        link = await self._linked(consuming=True)
        lent = await link.take(timeout)
        self._check_open()
        return None if lent is None else self._delivery(lent)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        link = await self._linked()
        mine = {d.token: d for d in deliveries if isinstance(d, _ZmqDelivery) and d.queue is self}
        stale = [delivery for delivery in deliveries if delivery.queue is not self]
        stale += [mine[token] for token in await link.settle(list(mine))]
        if stale:
            raise self._stale_lease(stale)

    async def nack(self, delivery: Delivery, delay: float) -> None:
        link = await self._linked()
        if not await link.give_back(self._token(delivery), delay):
            raise self._stale_lease([delivery])

    async def reject(self, delivery: Delivery, reason: str) -> None:
        link = await self._linked()
        if not await link.reject(self._token(delivery), reason):
            raise self._stale_lease([delivery])

    async def release(self) -> None:
        await (await self._linked()).release()

    async def stats(self) -> QueueStats:
        stats = await (await self._linked()).stats()
        self._backlog = (stats.backlog_records, stats.backlog_bytes)
        self._measured_at = time.monotonic()
        return stats

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        return await (await self._linked()).dead_letters(limit)

    async def discard(self, letter: DeadLetter) -> None:
        await (await self._linked()).discard(letter)

    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        return await (await self._linked()).peek(limit)

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._link is not None:
                await self._link.close()
        finally:
            if self._hub is not None:
                if lost := self._hub.backlog_records:
                    log.warning("%s: %d records were not acked; the hub that had them has closed", self.url, lost)
                await asyncio.to_thread(self._hub.stop)

    async def _linked(self, *, consuming: bool = False) -> Link:
        self._check_open()
        if self._link is not None:
            return self._link
        async with self._linking:
            if self._link is None:
                self._link = await self._find(consuming=consuming)
        return self._link

    async def _find(self, *, consuming: bool) -> Link:
        """Serve, or join whoever does. Who only puts serves as a last resort: a hub is best where the records are
        wanted, and lives as long."""
        if not self._zmq.serve:
            return await self._join(PATIENCE_SECONDS)
        deadline, patience = time.monotonic() + PATIENCE_SECONDS, _DEFERENCE_SECONDS
        may_serve = consuming
        while True:
            if may_serve and (link := await self._serve()) is not None:
                return link
            try:
                return await self._join(patience)
            except QueueStorageError:
                # In turns, because a hub that is closing, or dies now, has the address and answers nobody.
                if (left := deadline - time.monotonic()) <= 0:
                    raise
            may_serve, patience = True, min(2 * patience, left)

    async def _serve(self) -> Link | None:
        options, partitions = self._zmq, self._zmq.partitions or 1
        try:
            host = (await asyncio.get_running_loop().getaddrinfo(self._host, None, family=socket.AF_INET))[0][4][0]
            address = f"tcp://{host}:{self._port}"
            hub = Hub(address, partitions=partitions, lease_time=options.lease_time, certificate=options.certificate)
        except socket.gaierror as error:
            raise QueueURLError(f"{self.url}: the host is not known: {error}") from error
        except zmq.ZMQError as error:
            if error.errno in _NOT_OURS:
                return None
            raise QueueURLError(f"{self.url}: the address cannot be served: {error}") from error
        hub.start()
        self._hub = hub
        return hub.link(self._lease, self._check_consume(self._asked_for, partitions))

    async def _join(self, patience: float) -> Link:
        # A name of its own for each attempt: the connection of one that was given up may arrive late, and would be
        # taken by the hub for this one.
        self._producer = token_hex(8)
        link = RemoteLink(
            f"tcp://{self._host}:{self._port}",
            self._producer,
            hello=(self._lease, self._asked_for),
            lease_time=self._zmq.lease_time,
            certificate=self._zmq.certificate,
        )
        try:
            await link.ready(patience)
            if self._zmq.partitions not in (None, link.partitions):
                raise QueueURLError(f"{self.url}: the queue was created with partitions={link.partitions}")
            self._check_consume(self._asked_for, link.partitions)
        except BaseException:
            await link.close()
            raise
        return link

    async def _make_room(self, nbytes: int) -> None:
        """Raise QueueFull where the record would pass the hard limit, as far as others' puts are known by now."""
        recent = time.monotonic() - self._measured_at < _MEASURE_SECONDS
        if recent and self._backlog[1] + nbytes <= self._hard_limit:
            return
        await self.stats()
        if self._backlog[1] + nbytes > self._hard_limit:
            raise self._queue_full(nbytes, *self._backlog)

    def _delivery(self, lent: Lent) -> Delivery:
        _, partition, _, epoch = lent.token
        lane, position = f"{partition}.{lent.producer}", lent.number
        # By position, which takes a quarter less time than by name: a consumer that is behind makes little else.
        return _ZmqDelivery(
            lent.frames, lent.key, lent.tag, partition, lane, position, lent.redelivered, epoch, self, lent.token
        )

    def _token(self, delivery: Delivery) -> Token:
        if not isinstance(delivery, _ZmqDelivery) or delivery.queue is not self:
            raise self._stale_lease([delivery])
        return delivery.token

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosed(f"{self.url}: this handle is closed")
