"""Consuming one partition: alone under a lease, or sharing its records with any number of others."""

from __future__ import annotations

import heapq
import struct
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transports.base import Delivery, Frames, Queue, frames_nbytes
from transports.redis_streams import scripts
from transports.redis_streams.server import Server

_READ_AHEAD_BYTES = 1 << 20
_READ_AHEAD_RECORDS = 128
_SEQUENCE_BITS = 20


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """What a consumer is told about every partition it reads."""

    queue: Queue
    server: Server
    prefix: str
    holder: str
    lease_ms: int


class Entry(NamedTuple):
    """A record as the server has it."""

    id: bytes
    redelivered: bool
    key: bytes
    tag: bytes
    data: bytes

    @property
    def frames(self) -> Frames:
        return split_frames(self.data)

    @property
    def position(self) -> int:
        return _position(self.id)


class StreamConsumer(ABC):
    """One partition, as one handle consumes it."""

    def __init__(self, settings: StreamSettings, index: int) -> None:
        self._settings = settings
        self._server = settings.server
        self._index = index
        self._stream = f"{settings.prefix}:p{index}"
        self._epoch_key = f"{self._stream}:epoch"
        self._totals = f"{settings.prefix}:totals"
        self._epoch = 0
        self._nbytes: dict[str, int] = {}
        """Of what is lent: a consumer need not keep the frames of a delivery until it acks it."""

    @abstractmethod
    async def next(self) -> Delivery | None:
        """The next record, or None if there is none now."""

    @abstractmethod
    async def give_back(self, delivery: Delivery, delay: float) -> bool:
        """Deliver it again after the delay; False if it is stale."""

    @abstractmethod
    async def release(self) -> None:
        """Let others have the partition, and everything that was lent from it, at once."""

    async def disown(self, holder: str) -> None:
        """End what another handle, which is known to be dead, had leased of this partition."""
        keys = [self._stream, f"{self._stream}:lease"]
        await self._server.run(scripts.DISOWN, keys, [holder, self._holder_prefix])

    @abstractmethod
    def leases(self) -> dict[str, str]:
        """What the renewal must keep alive: keys, and the values by which they are ours."""

    @abstractmethod
    def _guard(self) -> tuple[str, str | int]:
        """By what the server knows whether a record is still lent to this consumer."""

    async def settle(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Ack them; those that are stale come back."""
        mine = [delivery for delivery in deliveries if delivery.epoch == self._epoch]
        stale = [delivery for delivery in deliveries if delivery.epoch != self._epoch]
        if mine:
            args = [arg for delivery in mine for arg in (_id(delivery), self._nbytes.get(_id(delivery), 0))]
            keys = [self._stream, self._epoch_key, self._totals]
            refused = set(await self._server.run(scripts.SETTLE, keys, [*self._guard(), *args]))
            stale += [delivery for delivery in mine if _id(delivery).encode() in refused]
            for delivery in mine:
                self._nbytes.pop(_id(delivery), None)
        return stale

    async def reject(self, delivery: Delivery, reason: str) -> bool:
        """Make it a dead letter; False if it is stale."""
        return await self._is_lent(delivery, utf8(reason)) and not await self.settle([delivery])

    @property
    def _holder_prefix(self) -> str:
        return f"{self._settings.prefix}:holder:{self._index}:"

    async def _is_lent(self, delivery: Delivery, *reason: bytes) -> bool:
        keys = [self._stream, self._epoch_key, f"{self._settings.prefix}:dead"]
        args = [*self._guard(), _id(delivery), *reason]
        return delivery.epoch == self._epoch and bool(await self._server.run(scripts.HOLD, keys, args))

    def _delivery(self, entry: Entry) -> Delivery:
        position = entry.position
        self._nbytes[_id_at(position)] = frames_nbytes(entry.frames)
        return Delivery(
            frames=entry.frames,
            key=text(entry.key),
            tag=text(entry.tag),
            partition=self._index,
            lane=str(self._index),
            position=position,
            redelivered=entry.redelivered,
            epoch=self._epoch,
            queue=self._settings.queue,
        )


class StreamPartition(StreamConsumer):
    """Under a lease of the whole partition, with a consumer group of its own that begins with what is unacked."""

    def __init__(self, settings: StreamSettings, index: int) -> None:
        super().__init__(settings, index)
        self._lease = f"{self._stream}:lease"
        self._keys = [self._stream, self._lease, self._epoch_key, f"{self._stream}:delivered"]
        self._ready: deque[Entry] = deque()
        self._delayed: list[tuple[float, str]] = []
        self._delivered_before = self._delivered = 0
        self._last = "0-0"
        self._count = 1

    async def next(self) -> Delivery | None:
        if self._delayed and self._delayed[0][0] <= time.monotonic():
            found = await self._server.run(scripts.AGAIN, [self._stream, self._totals], [self._delayed[0][1]])
            heapq.heappop(self._delayed)
            for id_, fields in found:  # none where it was acked after all
                return self._delivery(Entry(id_, True, fields[1], fields[3], fields[5]))
        if not self._ready and (self._epoch or await self._acquire()):
            await self._read()
        if not self._ready:
            return None
        entry = self._ready.popleft()
        self._delivered = max(self._delivered, entry.position)
        return self._delivery(entry)

    async def give_back(self, delivery: Delivery, delay: float) -> bool:
        if not await self._is_lent(delivery):
            return False
        heapq.heappush(self._delayed, (time.monotonic() + delay, _id(delivery)))
        return True

    async def release(self) -> None:
        if self._epoch:
            delivered = _id_at(max(self._delivered, self._delivered_before))
            await self._server.run(scripts.RELEASE, self._keys, [self._epoch, delivered])
        self._forget()

    def leases(self) -> dict[str, str]:
        return {self._lease: self._settings.holder} if self._epoch else {}

    def _guard(self) -> tuple[str, str | int]:
        return "partition", self._epoch

    async def _acquire(self) -> bool:
        args = [self._settings.holder, self._settings.lease_ms]
        self._epoch, delivered = await self._server.run(scripts.ACQUIRE, self._keys, args)
        if self._epoch:
            self._delivered_before = _position(delivered)
        return bool(self._epoch)

    async def _read(self) -> None:
        group, consumer = f"e{self._epoch}", self._settings.holder
        found = await self._server.read(self._stream, group, consumer, self._last, self._count)
        if found is None:
            self._forget()
            return
        for id_, fields in found:
            self._last = text(id_)
            redelivered = _position(id_) <= self._delivered_before
            self._ready.append(Entry(id_, redelivered, fields[b"k"], fields[b"t"], fields[b"d"]))
        if again := sum(entry.redelivered for entry in self._ready):
            await self._server.run(scripts.REDELIVERED, [self._totals], [again])
        if self._ready:
            # About a megabyte at a time, going by what came this time.
            largest = max(len(entry.data) for entry in self._ready)
            self._count = max(1, min(_READ_AHEAD_RECORDS, _READ_AHEAD_BYTES // largest))

    def _forget(self) -> None:
        self._epoch = self._delivered = self._delivered_before = 0
        self._last = "0-0"
        self._nbytes.clear()
        self._ready.clear()
        self._delayed.clear()


class StreamSingles(StreamConsumer):
    """Sharing a partition: each record is pending with the consumer that has it, until that one no longer lives."""

    def __init__(self, settings: StreamSettings, index: int) -> None:
        super().__init__(settings, index)
        self._epoch = 1
        self._delayed: list[tuple[float, str]] = []

    async def next(self) -> Delivery | None:
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            await self._pass_on(heapq.heappop(self._delayed)[1])
        args = [self._consumer, self._settings.lease_ms, self._holder_prefix, *self._nbytes]
        entries = await self._server.run(scripts.TAKE_RECORD, [self._stream, self._totals], args)
        for id_, times, fields in entries:
            return self._delivery(Entry(id_, times > 0, fields[1], fields[3], fields[5]))
        return None

    async def give_back(self, delivery: Delivery, delay: float) -> bool:
        if not await self._is_lent(delivery):
            return False
        if delay > 0:
            # Kept by this consumer until then: nobody else needs to know of the delay.
            heapq.heappush(self._delayed, (time.monotonic() + delay, _id(delivery)))
        else:
            await self._pass_on(_id(delivery))
        return True

    async def release(self) -> None:
        await self._server.run(scripts.FORGET, [self._holder_prefix + self._consumer])
        self._epoch += 1
        self._nbytes.clear()
        self._delayed.clear()

    def leases(self) -> dict[str, str]:
        return {self._holder_prefix + self._consumer: self._consumer}

    def _guard(self) -> tuple[str, str | int]:
        return "record", self._consumer

    @property
    def _consumer(self) -> str:
        return f"{self._settings.holder}.{self._epoch}"

    async def _pass_on(self, id_: str) -> None:
        await self._server.run(scripts.GIVE_BACK, [self._stream], [id_])
        self._nbytes.pop(id_, None)


def _position(id_: bytes) -> int:
    milliseconds, _, sequence = id_.partition(b"-")
    return int(milliseconds) << _SEQUENCE_BITS | int(sequence)


def _id_at(position: int) -> str:
    return f"{position >> _SEQUENCE_BITS}-{position & ((1 << _SEQUENCE_BITS) - 1)}"


def _id(delivery: Delivery) -> str:
    return _id_at(delivery.position)


def join_frames(frames: Frames) -> bytes:
    sizes = [memoryview(frame).nbytes for frame in frames]
    return b"".join([struct.pack(f"<{len(sizes) + 1}I", len(sizes), *sizes), *frames])


def split_frames(data: bytes) -> Frames:
    (count,) = struct.unpack_from("<I", data)
    sizes = struct.unpack_from(f"<{count}I", data, 4)
    view, at = memoryview(data), 4 + 4 * count
    frames = []
    for size in sizes:
        frames.append(view[at : at + size])
        at += size
    return tuple(frames)


def utf8(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def text(value: Any) -> str:
    return str(value, "utf-8", "surrogatepass")
