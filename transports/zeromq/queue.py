"""`zmq://host:port`: a queue in the memory of processes, with the lowest latency between machines.

The first handle that binds the address serves the queue from its memory: it has the hub. This should be the trainer's
handle, because the trainer then gets the records without another transfer. Every other handle keeps its records until
they are settled, and sends them again to a new hub. A record is lost only if the hub and its producer are both gone.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from secrets import token_hex

import zmq

from transports.base import DeadLetter, Delivery, Frames, Lease, Peeked, Queue, QueueStats
from transports.errors import QueueStorageError, QueueURLError
from transports.zeromq.connection import ZmqConnection
from transports.zeromq.hub import Hub
from transports.zeromq.links import HubLink, LeasedRecord, LeaseToken
from transports.zeromq.options import parse_zmq_url
from transports.zeromq.remote import HUB_TIMEOUT, RemoteHubLink

log = logging.getLogger(__name__)

_STATS_MAX_AGE_SECONDS = 0.25
_FIRST_JOIN_TIMEOUT = 0.2
_ADDRESS_NOT_FREE_ERRNOS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENODEV)
"""The error numbers of a bind if the address is not free: another process or another machine has it."""


@dataclass(frozen=True, slots=True, eq=False)
class _ZmqDelivery(Delivery):
    token: LeaseToken


class ZmqQueue(Queue):
    """A handle that serves the hub itself, or uses the hub of another handle. Its first operation decides this."""

    def __init__(self, url: str, *, lease: Lease, consume: Sequence[int] | None) -> None:
        self._host, self._port, options = parse_zmq_url(url)
        super().__init__(url, options)
        self._zmq_options = options
        self._lease: Lease = lease
        self._consume = consume
        self._put_lock = asyncio.Lock()
        self._waiting_puts = 0
        self._hub: Hub | None = None
        self._link: HubLink | None = None
        self._link_lock = asyncio.Lock()
        self._known_backlog = (0, 0)
        self._measured_at = float("-inf")

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        """See `Queue.put`."""
        nbytes = self._check_record_size(frames)
        # One put at a time: a small record must not overtake an earlier one that waits for space in the window.
        await self._wait_for_turn()
        try:
            link = await self._get_link()
            await self._check_room(nbytes)
            await link.put(tuple(bytes(frame) for frame in frames), key, tag)
            self._known_backlog = (self._known_backlog[0] + 1, self._known_backlog[1] + nbytes)
        finally:
            self._put_lock.release()

    async def receive(self, *, timeout: float) -> Delivery | None:
        """See `Queue.receive`."""
        link = await self._get_link(consuming=True)
        leased = await link.receive(timeout)
        self._check_open()
        return None if leased is None else self._make_delivery(leased)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Queue.ack`."""
        link = await self._get_link()
        own_deliveries = {d.token: d for d in deliveries if isinstance(d, _ZmqDelivery) and d.queue is self}
        stale = [delivery for delivery in deliveries if delivery.queue is not self]
        stale += [own_deliveries[token] for token in await link.ack(list(own_deliveries))]
        if stale:
            raise self._stale_lease_error(stale)

    async def nack(self, delivery: Delivery, delay: float) -> None:
        """See `Queue.nack`."""
        link = await self._get_link()
        if not await link.nack(self._own_token(delivery), delay):
            raise self._stale_lease_error([delivery])

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """See `Queue.reject`."""
        link = await self._get_link()
        if not await link.reject(self._own_token(delivery), reason):
            raise self._stale_lease_error([delivery])

    async def release(self) -> None:
        """See `Queue.release`."""
        await (await self._get_link()).release()

    async def stats(self) -> QueueStats:
        """See `Queue.stats`."""
        stats = await (await self._get_link()).stats()
        self._known_backlog = (stats.backlog_records, stats.backlog_bytes)
        self._measured_at = time.monotonic()
        return stats

    async def partition_count(self) -> int:
        """See `Queue.partition_count`."""
        return (await self._get_link()).partitions

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        """See `Queue.dead_letters`."""
        return await (await self._get_link()).dead_letters(limit)

    async def discard(self, letter: DeadLetter) -> None:
        """See `Queue.discard`."""
        await (await self._get_link()).discard(letter)

    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        """See `Queue.peek`."""
        return await (await self._get_link()).peek(limit)

    async def _close(self) -> None:
        try:
            if self._link is not None:
                await self._link.close()
        finally:
            if self._hub is not None:
                if lost := self._hub.backlog_records:
                    log.warning("%s: the hub has closed with %d records that were not acked", self.url, lost)
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
        """Serve the hub, or join the hub of another handle. Return the link to the hub.

        A handle that only puts records first tries to join. The hub should be in the process of the consumer, because
        it then lives as long as the consumer.
        """
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
                # Try to serve and to join alternately: a dying hub still has the address, but does not answer.
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
            raise QueueURLError(f"{self.url}: the host is not known: {error}; correct the host in the URL") from error
        except zmq.ZMQError as error:
            if error.errno in _ADDRESS_NOT_FREE_ERRNOS:
                return None
            raise QueueURLError(
                f"{self.url}: this process cannot serve the address: {error}; choose another port or host"
            ) from error
        hub.start()
        self._hub = hub
        return hub.new_link(self._lease, self._resolve_partitions(self._consume, partitions), token_hex(8))

    async def _join(self, timeout: float) -> HubLink:
        address = f"tcp://{self._host}:{self._port}"
        connect = partial(
            ZmqConnection,
            address=address,
            # Each attempt has a new name. A late message of an earlier attempt would confuse the hub otherwise.
            producer=token_hex(8),
            lease_time=self._zmq_options.lease_time,
            certificate=self._zmq_options.certificate,
        )
        link = RemoteHubLink(address, connect, lease=self._lease, consume=self._consume)
        try:
            await link.wait_until_ready(timeout)
            if self._zmq_options.partitions not in (None, link.partitions):
                raise QueueURLError(
                    f"{self.url}: the queue was created with partitions={link.partitions}; use that number"
                )
            self._resolve_partitions(self._consume, link.partitions)
        except BaseException:
            await link.close()
            raise
        return link

    async def _wait_for_turn(self) -> None:
        if not self._waiting_puts and not self._put_lock.locked():
            await self._put_lock.acquire()  # the lock is free; a timeout would only make this slower
            return
        self._waiting_puts += 1
        try:
            async with asyncio.timeout(HUB_TIMEOUT):
                await self._put_lock.acquire()
        except TimeoutError:
            raise QueueStorageError(
                f"{self.url}: earlier puts of this handle have waited for {HUB_TIMEOUT:g} s; check that the process "
                "of the hub runs"
            ) from None
        finally:
            self._waiting_puts -= 1

    async def _check_room(self, nbytes: int) -> None:
        """Raise QueueFull if the record would exceed the hard limit. Measure the backlog again if that is needed."""
        is_recent = time.monotonic() - self._measured_at < _STATS_MAX_AGE_SECONDS
        if is_recent and self._known_backlog[1] + nbytes <= self._hard_limit:
            return
        await self.stats()
        if self._known_backlog[1] + nbytes > self._hard_limit:
            raise self._queue_full_error(nbytes, *self._known_backlog)

    def _make_delivery(self, leased: LeasedRecord) -> Delivery:
        _, partition, _, epoch = leased.token
        lane, position = f"{partition}.{leased.producer}", leased.number
        # Positional arguments, because they take a quarter less time than keywords.
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
