"""The contract of a queue: records go in by key, come out under a lease, and stay until they are acked.

    async with open_queue("file:///data/run7/trajectories?partitions=2") as queue:
        await queue.admit()  # a producer asks before it starts a rollout, never within one
        await queue.put(encode(record), key="group-12", tag="rollout-3")

    async with open_queue("file:///data/run7/trajectories", consume=[0]) as queue:
        while (delivery := await queue.receive(timeout=5.0)) is not None:
            train_on(decode(delivery.frames))
            await delivery.ack()

A queue carries frames and does not read them. Delivery is at least once. Records that one handle puts under one key
arrive in the order of the puts, unless a record is redelivered. `docs/queues.md` has the whole contract as prose, and
`transports.testing.QueueConformance` has a case for each of its statements.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Literal, Self, TypeAlias
from zlib import crc32

from transports.errors import AdmissionTimeout, QueueError, QueueFull, QueueURLError, RecordTooLarge
from transports.redaction import hide_passwords
from transports.urls import QueueOptions, without_password

Frames: TypeAlias = tuple[bytes | memoryview, ...]
Lease: TypeAlias = Literal["partition", "record"]

ADMISSION_TIMEOUT = 1800.0
"""Seconds that `admit()` waits if the caller gives no deadline: a stall this long is an error."""

_ADMISSION_POLL = (0.005, 0.25)
_REQUEUE_BATCH = 16


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What a queue holds now; records that are delivered but not acked belong to the backlog."""

    backlog_records: int
    """How many records are not acked."""
    backlog_bytes: int
    """The bytes of their frames."""
    oldest_age: float
    """Seconds since the oldest record of the backlog was put; 0.0 if the backlog is empty."""
    redeliveries: int
    """How often records were delivered again, since the queue was created."""
    dead_letters: int
    """How many rejected records the queue keeps."""
    retained_records: int = 0
    """How many acked records the queue retains; they belong to no backlog, and only a replay gives them again."""
    refused_messages: int = 0
    """How many messages a `zmq://` hub refused because they were malformed, or of another version of its protocol."""


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetter:
    """A record that a consumer rejected, and why."""

    id: str
    """The name under which its queue keeps it."""
    frames: Frames
    """The frames of the record, as they were put."""
    key: str
    """The key under which it was put."""
    tag: str
    """The producer's label."""
    reason: str
    """Why the consumer rejected it."""


@dataclass(frozen=True, slots=True, eq=False)
class Peeked:
    """A record of the backlog, or of a replay, as a reader sees it that only peeks."""

    frames: Frames
    """The frames of the record, as they were put."""
    key: str
    """The key under which it was put."""
    tag: str
    """The producer's label."""
    partition: int
    """The partition that it is in."""
    position: int
    """Its position in its lane."""
    delivered: bool
    """Whether it was delivered before; also true for a record that a consumer may only have read ahead."""
    acked: bool = False
    """Whether it is acked, and only retained; never true of a record of the backlog."""


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """One record, leased to this consumer until it is acked, given back or rejected, or until its lease ends."""

    frames: Frames
    """The frames of the record, as they were put."""
    key: str
    """The key under which it was put."""
    tag: str
    """The producer's label, kept outside of the payload: a record that cannot be decoded still has a name."""
    partition: int
    """The partition that it is in."""
    lane: str
    """An ordered stream within the queue; a redelivered record has the lane and the position it had before."""
    position: int
    """Strictly rising within its lane for the lifetime of the queue."""
    redelivered: bool
    """Whether it may have been delivered before."""
    epoch: int
    """The fencing epoch of the lease under which it was delivered."""
    queue: Queue = field(repr=False)
    """The handle that received it."""

    @property
    def nbytes(self) -> int:
        return frames_nbytes(self.frames)

    async def ack(self) -> None:
        """Settle the record for good. Raises StaleLease if the lease has ended."""
        await self.queue.ack([self])

    async def nack(self, delay: float = 0.0) -> None:
        """Give the record back: it is delivered again after `delay` seconds. Raises StaleLease."""
        await self.queue.nack(self, delay)

    async def reject(self, reason: str) -> None:
        """Put the record among the dead letters and settle it. Raises StaleLease."""
        await self.queue.reject(self, reason)


class StaleLease(QueueError):
    """A consumer tried to settle a delivery after its lease had ended; another consumer has the record, or will get it.

    Deliveries of the same call whose lease has not ended are settled; `deliveries` are those that were refused.
    """

    def __init__(self, message: str, deliveries: Sequence[Delivery]) -> None:
        super().__init__(message)
        self.deliveries = tuple(deliveries)


class Queue(ABC):
    """One handle on a queue, for producing, consuming or both, used on the event loop that opened it.

    A handle leases nothing before its first `receive`. `release` and `aclose` give its leases back.
    """

    max_record_bytes: ClassVar[int] = 1 << 30

    ends: ClassVar[bool] = False
    """Whether a `receive` that returns None means that nothing will ever come again."""

    def __init__(self, url: str, options: QueueOptions) -> None:
        self.url = without_password(hide_passwords(url))
        self._options = options
        self._hard_limit = options.effective_hard_limit

    @abstractmethod
    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        """Return once the record is accepted as durably as the URL promises. The caller may then reuse its buffers.

        Raises RecordTooLarge, QueueFull (over the hard limit) and QueueStorageError; the record is then not accepted.
        """

    @abstractmethod
    async def receive(self, *, timeout: float) -> Delivery | None:
        """The next record that this consumer has leased or may lease, or None when none came in time.

        Cancelling it loses nothing: a record is either returned or still there.
        """

    @abstractmethod
    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Settle all of them for good; a second ack under the same lease changes nothing.

        Raises StaleLease for those whose lease has ended, after the others were settled.
        """

    @abstractmethod
    async def nack(self, delivery: Delivery, delay: float) -> None:
        """See Delivery.nack."""

    @abstractmethod
    async def reject(self, delivery: Delivery, reason: str) -> None:
        """See Delivery.reject."""

    @abstractmethod
    async def release(self) -> None:
        """Give back every lease of this handle: its unacked records go to the next consumer, its acks are refused."""

    @property
    def limits(self) -> QueueOptions:
        """The options in the URL of this handle: partitions, the high water and the hard limit."""
        return self._options

    @property
    def holder(self) -> str:
        """The name of this handle for `expire_leases`, in any process; empty if no other handle can end its leases."""
        return ""

    async def expire_leases(self, holder: str) -> None:  # noqa: B027 - optional on purpose
        """End the leases of another handle now: its process is known to be dead. If it lives, its acks are refused.

        Without this call they end by themselves, some seconds later; a transport need not implement it.
        """

    @abstractmethod
    async def stats(self) -> QueueStats:
        """What the queue holds now; cheap enough to be called before each rollout."""

    @abstractmethod
    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        """The first `limit` rejected records, oldest first; they stay where they are."""

    @abstractmethod
    async def discard(self, letter: DeadLetter) -> None:
        """Remove a dead letter for good; nothing happens if it is gone already."""

    @abstractmethod
    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        """The first `limit` records of the backlog, oldest first. Nothing is leased, and they stay where they are.

        Of a replay, the first of all records that it gives.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Release what was leased; every later call except `aclose` raises QueueClosed."""

    async def admit(self, *, timeout: float | None = None) -> None:
        """Wait while the backlog is over the high water, in bytes or in records: the gate for *new* work.

        Records of started work are never held back, or a trainer that waits for a whole group and a worker that waits
        for room would wait for each other. Raises AdmissionTimeout at the deadline (None: ADMISSION_TIMEOUT).
        """
        timeout_seconds = ADMISSION_TIMEOUT if timeout is None else timeout
        deadline = time.monotonic() + timeout_seconds
        delay, max_delay = _ADMISSION_POLL
        while True:
            stats = await self.stats()
            if self._options.admits(stats.backlog_bytes, stats.backlog_records):
                return
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise AdmissionTimeout(
                    f"{self.url}: no room for new work within {timeout_seconds:g} s: the backlog is "
                    f"{stats.backlog_records} records of {stats.backlog_bytes} bytes, the oldest unacked for "
                    f"{stats.oldest_age:.1f} s, and the high water is {self._options.high_water_text}. See that the "
                    "consumer runs and acks, or raise it."
                )
            await asyncio.sleep(min(delay, remaining))
            delay = min(delay * 2, max_delay)

    async def requeue(self, *, limit: int) -> int:
        """Put the first `limit` dead letters back as new records; returns how many.

        Raises what `put` raises; the letters before that one are put back, it and the others stay dead letters.
        """
        requeued = 0
        while requeued < limit and (letters := await self.dead_letters(limit=min(_REQUEUE_BATCH, limit - requeued))):
            for letter in letters:
                # In this order: if the process dies in between, a record exists twice, and none is lost.
                await self.put(letter.frames, key=letter.key, tag=letter.tag)
                await self.discard(letter)
                requeued += 1
        return requeued

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _resolve_partitions(self, consume: Sequence[int] | None, partitions: int) -> tuple[int, ...]:
        """The partitions that this consumer may lease; all of them if `consume` is None."""
        if consume is None:
            return tuple(range(partitions))
        for partition in consume:
            if not 0 <= partition < partitions:
                raise QueueURLError(
                    f"{self.url}: there is no partition {partition} to consume; the queue was created with {partitions}"
                )
        return tuple(dict.fromkeys(consume))

    def _check_record_size(self, frames: Frames) -> int:
        """The size of a record; raises QueueError or RecordTooLarge if it can never be put."""
        if not frames:
            raise QueueError(f"{self.url}: a record needs at least one frame")
        nbytes = frames_nbytes(frames)
        if nbytes > self._hard_limit or nbytes > self.max_record_bytes:
            limit = min(self.max_record_bytes, self._hard_limit)
            raise RecordTooLarge(
                f"{self.url}: a record of {nbytes} bytes is over the {limit} that this queue ever accepts. "
                f"Send images by reference, or raise hard_limit (at most {self.max_record_bytes})."
            )
        return nbytes

    def _queue_full_error(self, nbytes: int, backlog_records: int, backlog_bytes: int) -> QueueFull:
        return QueueFull(
            f"{self.url}: {nbytes} more bytes would pass the hard limit of {self._hard_limit}; the "
            f"backlog is {backlog_records} records of {backlog_bytes} bytes. See that the consumer runs and acks."
        )

    def _stale_lease_error(self, deliveries: Sequence[Delivery]) -> StaleLease:
        first = deliveries[0]
        return StaleLease(
            f"{self.url}: {len(deliveries)} record(s), the first at position {first.position} of lane {first.lane}, "
            "are no longer lent to this handle; whoever leases them next sees them again",
            deliveries,
        )


def frames_nbytes(frames: Frames) -> int:
    return sum([len(frame) if isinstance(frame, bytes) else frame.nbytes for frame in frames])


def partition_of(key: str, partitions: int) -> int:
    """The partition of a key; the same on every machine and in every release."""
    return crc32(key.encode("utf-8", "surrogatepass")) % partitions
