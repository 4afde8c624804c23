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
from transports.zeromq.links import HubLink, LeasedRecord, LeaseToken, format_record_name
from transports.zeromq.remote import HUB_TIMEOUT, RemoteHubLink

log = logging.getLogger(__name__)

_STATS_MAX_AGE_SECONDS = 0.25
_FIRST_JOIN_TIMEOUT = 0.2
_ADDRESS_NOT_FREE_ERRNOS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENODEV)
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
    token: LeaseToken


class ZmqQueue(Queue):
    """A handle that serves, or one that is linked to another's hub; which, its first operation finds out."""

    def __init__(self, url: str, *, lease: Lease, consume: Sequence[int] | None) -> None:
        parts, options = parse_queue_url(url, ZmqOptions)
        super().__init__(url, options)
        if parts.hostname is None or parts.port is None or parts.path not in ("", "/"):
            raise QueueURLError(f"{url}: expected a host and a port, as in zmq://10.0.0.5:5555")
        self._host, self._port = parts.hostname, parts.port
        self._zmq_options = options
        self._lease: Lease = lease
        self._consume = consume
        self._producer_id = token_hex(8)
        self._put_count = 0
        self._hub: Hub | None = None
        self._link: HubLink | None = None
        self._link_lock = asyncio.Lock()
        self._known_backlog = (0, 0)
        self._measured_at = float("-inf")
        self._closed = False

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        nbytes = self._check_record_size(frames)
        link = await self._get_link()
        await self._check_room(nbytes)
        self._put_count += 1
        self._known_backlog = (self._known_backlog[0] + 1, self._known_backlog[1] + nbytes)
        copied_frames = tuple(bytes(frame) for frame in frames)
        await link.put(copied_frames, key, format_record_name(self._producer_id, self._put_count - 1, tag))

    async def receive(self, *, timeout: float) -> Delivery | None:
        link = await self._get_link(consuming=True)
        leased = await link.receive(timeout)
        self._check_open()
        return None if leased is None else self._make_delivery(leased)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        link = await self._get_link()
        own_deliveries = {d.token: d for d in deliveries if isinstance(d, _ZmqDelivery) and d.queue is self}
        stale = [delivery for delivery in deliveries if delivery.queue is not self]
        stale += [own_deliveries[token] for token in await link.ack(list(own_deliveries))]
        if stale:
            raise self._stale_lease_error(stale)

    async def nack(self, delivery: Delivery, delay: float) -> None:
        link = await self._get_link()
        if not await link.nack(self._own_token(delivery), delay):
            raise self._stale_lease_error([delivery])

    async def reject(self, delivery: Delivery, reason: str) -> None:
        link = await self._get_link()
        if not await link.reject(self._own_token(delivery), reason):
            raise self._stale_lease_error([delivery])

    async def release(self) -> None:
        await (await self._get_link()).release()

    async def stats(self) -> QueueStats:
        stats = await (await self._get_link()).stats()
        self._known_backlog = (stats.backlog_records, stats.backlog_bytes)
        self._measured_at = time.monotonic()
        return stats

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        return await (await self._get_link()).dead_letters(limit)

    async def discard(self, letter: DeadLetter) -> None:
        await (await self._get_link()).discard(letter)

    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        return await (await self._get_link()).peek(limit)

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

    async def _get_link(self, *, consuming: bool = False) -> HubLink:
        self._check_open()
        if self._link is not None:
            return self._link
        async with self._link_lock:
            if self._link is None:
                self._link = await self._serve_or_join(consuming=consuming)
        return self._link

    async def _serve_or_join(self, *, consuming: bool) -> HubLink:
        """Serve, or join whoever does. Who only puts serves as a last resort: a hub is best where the records are
        wanted, and lives as long."""
        if not self._zmq_options.serve:
            return await self._join(HUB_TIMEOUT)
        deadline, join_timeout = time.monotonic() + HUB_TIMEOUT, _FIRST_JOIN_TIMEOUT
        may_serve = consuming
        while True:
            if may_serve and (link := await self._serve()) is not None:
                return link
            try:
                return await self._join(join_timeout)
            except QueueStorageError:
                # In turns, because a hub that is closing, or dies now, has the address and answers nobody.
                if (remaining := deadline - time.monotonic()) <= 0:
                    raise
            may_serve, join_timeout = True, min(2 * join_timeout, remaining)

    async def _serve(self) -> HubLink | None:
        options, partitions = self._zmq_options, self._zmq_options.partitions or 1
        try:
            host = (await asyncio.get_running_loop().getaddrinfo(self._host, None, family=socket.AF_INET))[0][4][0]
            address = f"tcp://{host}:{self._port}"
            hub = Hub(address, partitions=partitions, lease_time=options.lease_time, certificate=options.certificate)
        except socket.gaierror as error:
            raise QueueURLError(f"{self.url}: the host is not known: {error}") from error
        except zmq.ZMQError as error:
            if error.errno in _ADDRESS_NOT_FREE_ERRNOS:
                return None
            raise QueueURLError(f"{self.url}: the address cannot be served: {error}") from error
        hub.start()
        self._hub = hub
        return hub.new_link(self._lease, self._resolve_partitions(self._consume, partitions))

    async def _join(self, timeout: float) -> HubLink:
        # A name of its own for each attempt: the connection of one that was given up may arrive late, and would be
        # taken by the hub for this one.
        self._producer_id = token_hex(8)
        link = RemoteHubLink(
            f"tcp://{self._host}:{self._port}",
            self._producer_id,
            hello=(self._lease, self._consume),
            lease_time=self._zmq_options.lease_time,
            certificate=self._zmq_options.certificate,
        )
        try:
            await link.wait_until_ready(timeout)
            if self._zmq_options.partitions not in (None, link.partitions):
                raise QueueURLError(f"{self.url}: the queue was created with partitions={link.partitions}")
            self._resolve_partitions(self._consume, link.partitions)
        except BaseException:
            await link.close()
            raise
        return link

    async def _check_room(self, nbytes: int) -> None:
        """Raise QueueFull where the record would pass the hard limit, as far as others' puts are known by now."""
        is_recent = time.monotonic() - self._measured_at < _STATS_MAX_AGE_SECONDS
        if is_recent and self._known_backlog[1] + nbytes <= self._hard_limit:
            return
        await self.stats()
        if self._known_backlog[1] + nbytes > self._hard_limit:
            raise self._queue_full_error(nbytes, *self._known_backlog)

    def _make_delivery(self, leased: LeasedRecord) -> Delivery:
        _, partition, _, epoch = leased.token
        lane, position = f"{partition}.{leased.producer}", leased.number
        # By position, which takes a quarter less time than by name: a consumer that is behind makes little else.
        return _ZmqDelivery(
            leased.frames,
            leased.key,
            leased.tag,
            partition,
            lane,
            position,
            leased.redelivered,
            epoch,
            self,
            leased.token,
        )

    def _own_token(self, delivery: Delivery) -> LeaseToken:
        if not isinstance(delivery, _ZmqDelivery) or delivery.queue is not self:
            raise self._stale_lease_error([delivery])
        return delivery.token

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosed(f"{self.url}: this handle is closed")
