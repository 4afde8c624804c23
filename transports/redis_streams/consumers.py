"""The consumers of one partition. One kind leases the whole partition; the other kind shares its records."""

from __future__ import annotations

import heapq
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transports.base import Delivery, Queue, frames_nbytes
from transports.errors import QueueCorrupt
from transports.redis_streams import scripts
from transports.redis_streams.entries import (
    ForeignEntry,
    RawFields,
    StreamEntry,
    decode_lossy,
    encode_text,
    id_of_position,
    join_frames,
    position_of_mark,
    read_entry,
)

if TYPE_CHECKING:
    from transports.redis_streams.server import RedisClient

log = logging.getLogger(__name__)

_READ_AHEAD_BYTES = 1 << 20
_READ_AHEAD_RECORDS = 128


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """The settings that the consumers of all partitions of one handle share."""

    queue: Queue
    """The handle to which the consumers belong."""
    server: RedisClient
    """The connection to the server."""
    prefix: str
    """The text with which all keys of the queue begin."""
    holder: str
    """The name under which the handle has its leases."""
    lease_ms: int
    """Milliseconds without a renewal after which a lease has expired."""


class StreamConsumer(ABC):
    """Consumes one partition for one handle."""

    def __init__(self, settings: StreamSettings, index: int) -> None:
        self._settings = settings
        self._server = settings.server
        self._index = index
        self._stream = f"{settings.prefix}:p{index}"
        self._epoch_key = f"{self._stream}:epoch"
        self._totals_key = f"{settings.prefix}:totals"
        self._epoch = 0
        self._unacked_nbytes: dict[str, int] = {}
        """The size of each unacked record, by its id. An ack needs the size, even if the delivery has no frames."""
        self._has_met_foreign_entries = False

    @abstractmethod
    async def next_delivery(self) -> Delivery | None:
        """Lease and return the next record, or return None if there is none now."""

    @abstractmethod
    async def nack(self, delivery: Delivery, delay: float) -> bool:
        """Deliver the record again after `delay` seconds. Return False if its lease has ended."""

    @abstractmethod
    async def release(self) -> None:
        """End the leases of this consumer, so that others get its unacked records at once."""

    async def expire_leases(self, holder: str) -> None:
        """End the leases that another handle has in this partition. Call this if the process of that handle is dead."""
        keys = [self._stream, f"{self._stream}:lease"]
        await self._server.run(scripts.EXPIRE_LEASES, keys, [holder, self._holder_prefix])

    @abstractmethod
    def leases(self) -> dict[str, str]:
        """Return the keys of the leases to renew, each with the value that it has while this handle has the lease."""

    @abstractmethod
    def _lease_guard(self) -> tuple[str, str | int]:
        """Return the script arguments with which the server checks that a record is still leased to this consumer."""

    async def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Ack deliveries. Return the deliveries whose lease has ended; they are not acked."""
        current = [delivery for delivery in deliveries if delivery.epoch == self._epoch]
        stale = [delivery for delivery in deliveries if delivery.epoch != self._epoch]
        if current:
            args = [
                arg
                for delivery in current
                for arg in (_delivery_id(delivery), self._unacked_nbytes.get(_delivery_id(delivery), 0))
            ]
            keys = [self._stream, self._epoch_key, self._totals_key]
            refused = set(await self._server.run(scripts.ACK, keys, [*self._lease_guard(), *args]))
            stale += [delivery for delivery in current if _delivery_id(delivery).encode() in refused]
            for delivery in current:
                self._unacked_nbytes.pop(_delivery_id(delivery), None)
        return stale

    async def reject(self, delivery: Delivery, reason: str) -> bool:
        """Make the record a dead letter. Return False if its lease has ended."""
        return await self._check_unacked(delivery, encode_text(reason)) and not await self.ack([delivery])

    @property
    def _holder_prefix(self) -> str:
        return f"{self._settings.prefix}:holder:{self._index}:"

    async def _check_unacked(self, delivery: Delivery, *reason: bytes) -> bool:
        keys = [self._stream, self._epoch_key, f"{self._settings.prefix}:dead"]
        args = [*self._lease_guard(), _delivery_id(delivery), *reason]
        return delivery.epoch == self._epoch and bool(await self._server.run(scripts.CHECK_UNACKED, keys, args))

    async def _read(self, id_: bytes, fields: RawFields, group: str) -> StreamEntry | None:
        """Return the record in an entry of the stream. Return None if the entry was deleted.

        If another program wrote the entry, make it a dead letter and return None.
        """
        if not fields:
            return None
        try:
            return read_entry(id_, fields)
        except ForeignEntry as foreign:
            if not self._has_met_foreign_entries:
                self._has_met_foreign_entries = True
                log.warning(
                    "%s: entry %s of %s is now a dead letter: %s; find the other program that writes to this stream",
                    *(self._settings.queue.url, decode_lossy(id_), self._stream, foreign),
                )
            letter = [encode_text(str(foreign)), foreign.key, foreign.tag, join_frames(foreign.frames)]
            keys = [self._stream, f"{self._settings.prefix}:dead"]
            await self._server.run(scripts.REJECT_FOREIGN_ENTRY, keys, [group, id_, *letter])
            return None

    def _make_delivery(self, entry: StreamEntry, *, redelivered: bool) -> Delivery:
        self._unacked_nbytes[id_of_position(entry.position)] = frames_nbytes(entry.frames)
        return Delivery(
            frames=entry.frames,
            key=entry.key,
            tag=entry.tag,
            partition=self._index,
            lane=str(self._index),
            position=entry.position,
            redelivered=redelivered,
            epoch=self._epoch,
            queue=self._settings.queue,
        )


class StreamPartitionConsumer(StreamConsumer):
    """Leases the whole partition. Each lease has a new consumer group, which begins with the unacked records."""

    def __init__(self, settings: StreamSettings, index: int) -> None:
        super().__init__(settings, index)
        self._lease_key = f"{self._stream}:lease"
        self._script_keys = [self._stream, self._lease_key, self._epoch_key, f"{self._stream}:delivered"]
        self._ready: deque[tuple[StreamEntry, bool]] = deque()
        """Records that were read ahead. For each: whether it may have been delivered before."""
        self._delayed: list[tuple[float, str]] = []
        self._previously_delivered = self._last_delivered = 0
        self._last_read_id = "0-0"
        self._read_count = 1

    async def next_delivery(self) -> Delivery | None:
        """See `StreamConsumer.next_delivery`."""
        if self._delayed and self._delayed[0][0] <= time.monotonic():
            entries = await self._server.run(scripts.REDELIVER, [self._stream, self._totals_key], [self._delayed[0][1]])
            heapq.heappop(self._delayed)
            for id_, fields in entries:  # there is no entry if the record was acked in between
                if (entry := await self._read(id_, fields, self._group)) is not None:
                    return self._make_delivery(entry, redelivered=True)
        if not self._ready and (self._epoch or await self._try_lease()):
            await self._read_ahead()
        if not self._ready:
            return None
        entry, redelivered = self._ready.popleft()
        self._last_delivered = max(self._last_delivered, entry.position)
        return self._make_delivery(entry, redelivered=redelivered)

    async def nack(self, delivery: Delivery, delay: float) -> bool:
        """See `StreamConsumer.nack`."""
        if not await self._check_unacked(delivery):
            return False
        heapq.heappush(self._delayed, (time.monotonic() + delay, _delivery_id(delivery)))
        return True

    async def release(self) -> None:
        """See `StreamConsumer.release`."""
        if self._epoch:
            delivered = id_of_position(max(self._last_delivered, self._previously_delivered))
            await self._server.run(scripts.RELEASE_PARTITION, self._script_keys, [self._epoch, delivered])
        self._reset()

    def leases(self) -> dict[str, str]:
        """See `StreamConsumer.leases`."""
        return {self._lease_key: self._settings.holder} if self._epoch else {}

    def _lease_guard(self) -> tuple[str, str | int]:
        return "partition", self._epoch

    @property
    def _group(self) -> str:
        return f"e{self._epoch}"

    async def _try_lease(self) -> bool:
        args = [self._settings.holder, self._settings.lease_ms]
        self._epoch, delivered = await self._server.run(scripts.LEASE_PARTITION, self._script_keys, args)
        if self._epoch:
            try:
                self._previously_delivered = position_of_mark(delivered)
            except ValueError as error:
                raise QueueCorrupt(
                    f"{self._settings.queue.url}: the key {self._stream}:delivered is damaged: {error}. Find the other "
                    "program that writes to it, and delete the key."
                ) from error
        return bool(self._epoch)

    async def _read_ahead(self) -> None:
        group, consumer = self._group, self._settings.holder
        entries = await self._server.read_group(self._stream, group, consumer, self._last_read_id, self._read_count)
        if entries is None:
            self._reset()
            return
        for id_, fields in entries:
            if (entry := await self._read(id_, fields, group)) is not None:
                self._ready.append((entry, entry.position <= self._previously_delivered))
            self._last_read_id = decode_lossy(id_)
        if redelivered_count := sum(redelivered for _, redelivered in self._ready):
            await self._server.run(scripts.COUNT_REDELIVERIES, [self._totals_key], [redelivered_count])
        if self._ready:
            # Choose the count so that the next read returns about a megabyte.
            largest = max(1, *(frames_nbytes(entry.frames) for entry, _ in self._ready))
            self._read_count = max(1, min(_READ_AHEAD_RECORDS, _READ_AHEAD_BYTES // largest))

    def _reset(self) -> None:
        self._epoch = self._last_delivered = self._previously_delivered = 0
        self._last_read_id = "0-0"
        self._unacked_nbytes.clear()
        self._ready.clear()
        self._delayed.clear()


class StreamSingleRecordConsumer(StreamConsumer):
    """Leases single records of a partition, which it shares with other consumers.

    The server keeps a leased record as pending for its consumer. If that consumer dies, another one gets the record.
    """

    def __init__(self, settings: StreamSettings, index: int) -> None:
        super().__init__(settings, index)
        self._epoch = 1
        self._delayed: list[tuple[float, str]] = []

    async def next_delivery(self) -> Delivery | None:
        """See `StreamConsumer.next_delivery`."""
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            await self._return_record(heapq.heappop(self._delayed)[1])
        args = [self._consumer_name, self._settings.lease_ms, self._holder_prefix, *self._unacked_nbytes]
        while entries := await self._server.run(scripts.TAKE_RECORD, [self._stream, self._totals_key], args):
            id_, delivery_count, fields = entries[0]
            if (entry := await self._read(id_, fields, "c")) is not None:
                return self._make_delivery(entry, redelivered=delivery_count > 0)
        return None

    async def nack(self, delivery: Delivery, delay: float) -> bool:
        """See `StreamConsumer.nack`."""
        if not await self._check_unacked(delivery):
            return False
        if delay > 0:
            # This consumer keeps the record during the delay, so other consumers need not know the delay.
            heapq.heappush(self._delayed, (time.monotonic() + delay, _delivery_id(delivery)))
        else:
            await self._return_record(_delivery_id(delivery))
        return True

    async def release(self) -> None:
        """See `StreamConsumer.release`."""
        await self._server.run(scripts.END_CONSUMER, [self._holder_prefix + self._consumer_name])
        self._epoch += 1
        self._unacked_nbytes.clear()
        self._delayed.clear()

    def leases(self) -> dict[str, str]:
        """See `StreamConsumer.leases`."""
        return {self._holder_prefix + self._consumer_name: self._consumer_name}

    def _lease_guard(self) -> tuple[str, str | int]:
        return "record", self._consumer_name

    @property
    def _consumer_name(self) -> str:
        return f"{self._settings.holder}.{self._epoch}"

    async def _return_record(self, id_: str) -> None:
        await self._server.run(scripts.NACK, [self._stream], [id_])
        self._unacked_nbytes.pop(id_, None)


def _delivery_id(delivery: Delivery) -> str:
    return id_of_position(delivery.position)
