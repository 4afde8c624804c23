"""`memory://name`: a queue within one process, with the semantics of the durable ones and nothing on a disk.

Opening the same name twice, from any thread or event loop, shares one broker; when its last handle closes, the queue is
gone. A lease ends when its holder releases it or closes: a busy loop of the same process is not a dead one.
"""

from __future__ import annotations

import heapq
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar

from transports.base import DeadLetter, Delivery, Frames, Lease, Peeked, Queue, QueueStats, partition_of
from transports.errors import QueueClosed, QueueURLError
from transports.urls import QueueOptions, parse_queue_url
from transports.wakeups import Wakeups


@dataclass(slots=True, eq=False)
class _Record:
    frames: Frames
    key: str
    tag: str
    position: int
    nbytes: int
    put_at: float
    delivered: bool = False


@dataclass(slots=True, eq=False)
class _Partition:
    ready: deque[_Record] = field(default_factory=deque)
    delayed: list[tuple[float, int, _Record]] = field(default_factory=list)
    lent: dict[int, tuple[int, _Record]] = field(default_factory=dict)
    """Position to (epoch of the lease, record)."""
    holder: int | None = None
    """The epoch of the handle that leases the whole partition."""
    next_position: int = 0

    def promote_due(self, now: float) -> float | None:
        """Make ready what was given back with a delay that is over; the time of the next one, if any."""
        while self.delayed and self.delayed[0][0] <= now:
            self.ready.appendleft(heapq.heappop(self.delayed)[2])
        return self.delayed[0][0] if self.delayed else None

    def take_back(self, epoch: int) -> None:
        """End a lease: what it had lent is ready again, in its old order and ahead of everything else."""
        if self.holder == epoch:
            self.holder = None
        returned = [position for position, (owner, _) in self.lent.items() if owner == epoch]
        self.ready.extendleft(self.lent.pop(position)[1] for position in sorted(returned, reverse=True))

    def backlog(self) -> list[_Record]:
        return [*self.ready, *(record for _, _, record in self.delayed), *(record for _, record in self.lent.values())]

    def oldest_put(self) -> float:
        """When the oldest record was put; `ready` is in the order of the puts, so its first one speaks for it."""
        candidates = [record.put_at for _, record in self.lent.values()]
        candidates += [record.put_at for _, _, record in self.delayed]
        candidates += [self.ready[0].put_at] if self.ready else []
        return min(candidates, default=math.inf)


class _Broker:
    """The state that all handles of one name share; touched under its lock only."""

    def __init__(self, partitions: int) -> None:
        self.lock = threading.Lock()
        self.partitions = [_Partition() for _ in range(partitions)]
        self.handles: dict[str, MemoryQueue] = {}
        self.last_epoch = 0
        self.backlog_records = 0
        self.backlog_bytes = 0
        self.redeliveries = 0
        self.dead: dict[str, DeadLetter] = {}
        self.wakeups = Wakeups()
        self.on_settled: Callable[[str], None] | None = None

    def settle(self, partition: _Partition, position: int) -> None:
        lent = partition.lent.pop(position, None)
        if lent is None:
            return
        record = lent[1]
        self.backlog_records -= 1
        self.backlog_bytes -= record.nbytes
        if self.on_settled is not None:
            self.on_settled(record.tag)


class Place(Protocol):
    """Where a record is lent from, and under which lease: a Delivery, or less than that."""

    @property
    def partition(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def epoch(self) -> int: ...


P = TypeVar("P", bound=Place)

_brokers: dict[str, _Broker] = {}
_brokers_lock = threading.Lock()


class MemoryQueue(Queue):
    """A handle on the broker of its name."""

    def __init__(self, url: str, *, lease: Lease, consume: Sequence[int] | None) -> None:
        parts, options = parse_queue_url(url, QueueOptions)
        super().__init__(url, options)
        self._name = parts.netloc + parts.path
        if not self._name:
            raise QueueURLError(f"{url}: a memory queue needs a name, as in memory://tasks")
        self._shares_partitions = lease == "record"
        with _brokers_lock:
            broker = _brokers.get(self._name) or _Broker(options.partitions or 1)
            if options.partitions not in (None, len(broker.partitions)):
                raise QueueURLError(f"{url}: the queue was created with partitions={len(broker.partitions)}")
            self._consume = self._check_consume(consume, len(broker.partitions))
            self._broker = _brokers[self._name] = broker
            self._holder = secrets.token_hex(8)
            broker.handles[self._holder] = self
        self._epoch = 0
        self._closed = False

    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        self.put_owned(tuple([bytes(frame) for frame in frames]), key, tag)

    def put_owned(self, frames: Frames, key: str, tag: str) -> None:
        """The same for frames that will never change, which need no copy."""
        nbytes = self._acceptable_nbytes(frames)
        broker = self._open_broker()
        with broker.lock:
            if broker.backlog_bytes + nbytes > self._hard_limit:
                raise self._queue_full(nbytes, broker.backlog_records, broker.backlog_bytes)
            partition = broker.partitions[partition_of(key, len(broker.partitions))]
            partition.ready.append(_Record(frames, key, tag, partition.next_position, nbytes, time.monotonic()))
            partition.next_position += 1
            broker.backlog_records += 1
            broker.backlog_bytes += nbytes
            broker.wakeups.wake()

    async def receive(self, *, timeout: float) -> Delivery | None:
        now = time.monotonic()
        deadline = now + timeout
        while True:
            broker = self._open_broker()
            with broker.lock:
                delivery, next_due = self._take(broker, now)
                if delivery is not None or now >= deadline:
                    return delivery
                # Under the lock that every change is made under, so that none falls between looking and waiting.
                changed = broker.wakeups.expect()
            try:
                await broker.wakeups.wait(changed, min(deadline, next_due or deadline) - now)
            finally:
                broker.wakeups.forget(changed)
            now = time.monotonic()

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        mine = [delivery for delivery in deliveries if delivery.queue is self]
        stale = self.settle(mine)
        if stale or len(mine) < len(deliveries):
            raise self._stale_lease([*stale, *(delivery for delivery in deliveries if delivery.queue is not self)])

    def settle(self, places: Sequence[P]) -> list[P]:
        """Ack what this handle was lent at these places; those whose epoch is over come back."""
        broker = self._open_broker()
        stale = []
        with broker.lock:
            for place in places:
                if place.epoch == self._epoch:
                    broker.settle(broker.partitions[place.partition], place.position)
                else:
                    stale.append(place)
        return stale

    async def nack(self, delivery: Delivery, delay: float) -> None:
        broker = self._open_broker()
        with broker.lock:
            partition = self._lent_from(delivery)
            _, record = partition.lent.pop(delivery.position)
            heapq.heappush(partition.delayed, (time.monotonic() + delay, -record.position, record))
            broker.wakeups.wake()

    async def reject(self, delivery: Delivery, reason: str) -> None:
        broker = self._open_broker()
        with broker.lock:
            partition = self._lent_from(delivery)
            _, record = partition.lent[delivery.position]
            broker.settle(partition, delivery.position)
            # Named so that no other broker has the name: a `zmq://` hub that is started anew has letters of its own.
            letter = DeadLetter(secrets.token_hex(8), record.frames, record.key, record.tag, reason)
            broker.dead[letter.id] = letter

    async def release(self) -> None:
        broker = self._open_broker()
        with broker.lock:
            self._end_leases(broker)

    @property
    def holder(self) -> str:
        return self._holder

    async def disown(self, holder: str) -> None:
        broker = self._open_broker()
        with broker.lock:
            if holder in broker.handles:
                broker.handles[holder]._end_leases(broker)

    async def stats(self) -> QueueStats:
        broker = self._open_broker()
        with broker.lock:
            oldest = min(partition.oldest_put() for partition in broker.partitions)
            return QueueStats(
                backlog_records=broker.backlog_records,
                backlog_bytes=broker.backlog_bytes,
                oldest_age=max(0.0, time.monotonic() - oldest) if broker.backlog_records else 0.0,
                redeliveries=broker.redeliveries,
                dead_letters=len(broker.dead),
            )

    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        broker = self._open_broker()
        with broker.lock:
            return tuple(islice(broker.dead.values(), limit))

    async def discard(self, letter: DeadLetter) -> None:
        broker = self._open_broker()
        with broker.lock:
            broker.dead.pop(letter.id, None)

    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        broker = self._open_broker()
        with broker.lock:
            found = [(index, record) for index, p in enumerate(broker.partitions) for record in p.backlog()]
            oldest = heapq.nsmallest(limit, found, key=lambda entry: (entry[1].put_at, entry[1].position))
            return tuple(
                Peeked(record.frames, record.key, record.tag, index, record.position, record.delivered)
                for index, record in oldest
            )

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        with self._broker.lock:
            self._end_leases(self._broker)
        with _brokers_lock:
            del self._broker.handles[self._holder]
            if not self._broker.handles:
                del _brokers[self._name]

    @property
    def backlog_records(self) -> int:
        return self._open_broker().backlog_records

    def watch_settled(self, callback: Callable[[str], None]) -> None:
        """Call back with the tag of each record that is settled from now on, on the thread that settles it."""
        self._open_broker().on_settled = callback

    def _open_broker(self) -> _Broker:
        if self._closed:
            raise QueueClosed(f"{self.url}: this handle is closed")
        return self._broker

    def _take(self, broker: _Broker, now: float) -> tuple[Delivery | None, float | None]:
        """The next record this handle may have, or else when the next delayed one falls due."""
        next_due: float | None = None
        if not self._epoch:
            broker.last_epoch += 1
            self._epoch = broker.last_epoch
        for index in self._consume:
            partition = broker.partitions[index]
            if not self._shares_partitions:
                partition.holder = partition.holder or self._epoch
                if partition.holder != self._epoch:
                    continue
            due = partition.promote_due(now) if partition.delayed else None
            if partition.ready:
                return self._lend(broker, index, partition.ready.popleft()), None
            if due is not None:
                next_due = due if next_due is None else min(next_due, due)
        return None, next_due

    def _lend(self, broker: _Broker, index: int, record: _Record) -> Delivery:
        broker.partitions[index].lent[record.position] = (self._epoch, record)
        redelivered, record.delivered = record.delivered, True
        broker.redeliveries += redelivered
        # By position, which takes a quarter less time than by name: a consumer that is behind makes little else.
        return Delivery(
            record.frames, record.key, record.tag, index, str(index), record.position, redelivered, self._epoch, self
        )

    def _end_leases(self, broker: _Broker) -> None:
        for partition in broker.partitions:
            partition.take_back(self._epoch)
        self._epoch = 0
        broker.wakeups.wake()

    def _holds(self, delivery: Delivery) -> bool:
        return delivery.queue is self and delivery.epoch == self._epoch

    def _lent_from(self, delivery: Delivery) -> _Partition:
        partition = self._broker.partitions[delivery.partition]
        if not self._holds(delivery) or delivery.position not in partition.lent:
            raise self._stale_lease([delivery])
        return partition
