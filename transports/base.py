"""The contract of a queue: a record is put with a key, delivered under a lease, and kept until it is acked.

    async with open_queue("file:///data/run7/trajectories?partitions=2") as queue:
        await queue.admit()  # before a rollout starts, never within one
        await queue.put(encode(record), key="group-12", tag="rollout-3")

    async with open_queue("file:///data/run7/trajectories", consume=[0]) as queue:
        while (delivery := await queue.receive(timeout=5.0)) is not None:
            train_on(decode(delivery.frames))
            await delivery.ack()

A queue carries frames and does not read them. Delivery is at least once. Records that one handle puts under one key
arrive in the order of the puts, unless a record is redelivered. `docs/queues.md` explains the whole contract, and
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

from transports.errors import AdmissionTimeout, QueueClosed, QueueError, QueueFull, QueueURLError, RecordTooLarge
from transports.redaction import hide_passwords
from transports.urls import QueueOptions, without_password

Frames: TypeAlias = tuple[bytes | memoryview, ...]
Lease: TypeAlias = Literal["partition", "record"]

ADMISSION_TIMEOUT = 1800.0
"""Seconds that `admit()` waits by default; a longer stall is an error."""

_ADMISSION_POLL = (0.005, 0.25)
_REQUEUE_BATCH = 16


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What a queue holds now. A record that is delivered and not acked belongs to the backlog."""

    backlog_records: int
    """How many records are not acked."""
    backlog_bytes: int
    """The bytes of their frames."""
    oldest_age: float
    """Seconds since the oldest record of the backlog was put; 0.0 if the backlog is empty."""
    redeliveries: int
    """How many deliveries were repeated since the queue was created."""
    dead_letters: int
    """How many rejected records the queue keeps."""
    retained_records: int = 0
    """How many acked records the queue retains; they are not in the backlog, and only a replay delivers them."""
    refused_messages: int = 0
    """How many messages a `zmq://` hub refused: they were malformed, or of another version of the protocol."""


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetter:
    """A record that a consumer rejected, and why."""

    id: str
    """Its name in the queue, for `discard`."""
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
    """A record that `peek` shows, of the backlog or of a replay."""

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
    """Whether it was delivered before. It is also true if a consumer has only read the record ahead."""
    acked: bool = False
    """Whether it is acked and only retained; always false for the backlog."""


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A record that is leased to this consumer, until it is acked, given back or rejected, or until its lease ends."""

    frames: Frames
    """The frames of the record, as they were put."""
    key: str
    """The key under which it was put."""
    tag: str
    """The producer's label. It is not in the frames, so a record that cannot be decoded still has a name."""
    partition: int
    """The partition that it is in."""
    lane: str
    """An ordered stream within the queue. A redelivered record keeps its lane and position."""
    position: int
    """Its number in the lane; later records of the lane have higher numbers."""
    redelivered: bool
    """Whether it may have been delivered before."""
    epoch: int
    """The fencing epoch of the lease under which it was delivered."""
    queue: Queue = field(repr=False)
    """The handle that received it."""

    @property
    def nbytes(self) -> int:
        """The bytes of its frames."""
        return frames_nbytes(self.frames)

    async def ack(self) -> None:
        """Ack the record: the queue may forget it. Raises StaleLease if the lease has ended."""
        await self.queue.ack([self])

    async def nack(self, delay: float = 0.0) -> None:
        """Give the record back; it is delivered again after `delay` seconds. Raises StaleLease."""
        await self.queue.nack(self, delay)

    async def reject(self, reason: str) -> None:
        """Make the record a dead letter, with the reason. Raises StaleLease."""
        await self.queue.reject(self, reason)


class StaleLease(QueueError):
    """The lease of a delivery had ended before it was acked, given back or rejected. Another consumer gets the record.

    `deliveries` are those that were refused; the other deliveries of the same call are acked.
    """

    def __init__(self, message: str, deliveries: Sequence[Delivery]) -> None:
        super().__init__(message)
        self.deliveries = tuple(deliveries)


class Queue(ABC):
    """A handle on a queue, for a producer, a consumer or an administrator. Use it on the event loop that opened it.

    A handle leases nothing before its first `receive`. `release` and `aclose` end its leases.
    """

    max_record_bytes: ClassVar[int] = 1 << 30
    """The largest record that the transport can carry."""

    ends: ClassVar[bool] = False
    """Whether the queue has ended when `receive` returns None, as a replay does."""

    def __init__(self, url: str, options: QueueOptions) -> None:
        self.url = without_password(hide_passwords(url))
        self._options = options
        self._hard_limit = options.effective_hard_limit
        self._closed = False

    @abstractmethod
    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        """Put a record; return when it is as durable as the URL promises. The caller may then reuse its buffers.

        Raises:
            RecordTooLarge: the record can never fit.
            QueueFull: the backlog would exceed the hard limit.
            QueueStorageError: the disk or the server refused. In all three cases the record is not accepted.
        """

    @abstractmethod
    async def receive(self, *, timeout: float) -> Delivery | None:
        """Lease and return the next record, or return None if none comes in `timeout` seconds.

        A cancelled call loses nothing: a record is either returned or still in the queue.
        """

    @abstractmethod
    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Ack all of them. A second ack under the same lease changes nothing.

        Raises StaleLease for those whose lease has ended, after the others are acked.
        """

    @abstractmethod
    async def nack(self, delivery: Delivery, delay: float) -> None:
        """See `Delivery.nack`."""

    @abstractmethod
    async def reject(self, delivery: Delivery, reason: str) -> None:
        """See `Delivery.reject`."""

    @abstractmethod
    async def release(self) -> None:
        """End all leases of this handle. Its unacked records go to the next consumer, and its acks are refused."""

    @property
    def limits(self) -> QueueOptions:
        """The options in the URL: the partitions, the high water and the hard limit."""
        return self._options

    @property
    def holder(self) -> str:
        """The name of this handle for `expire_leases`; empty if no other handle can end its leases."""
        return ""

    async def expire_leases(self, holder: str) -> None:  # noqa: B027 - optional on purpose
        """End the leases of another handle, because its process is dead. If the process lives, its acks are refused.

        Without this call the leases expire some seconds later, so a transport need not implement it.
        """

    @abstractmethod
    async def stats(self) -> QueueStats:
        """Return what the queue holds now. It is cheap enough to be called before each rollout."""

    @abstractmethod
    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        """Return the first `limit` rejected records, oldest first, and keep them."""

    @abstractmethod
    async def discard(self, letter: DeadLetter) -> None:
        """Remove a dead letter. If it is gone already, nothing happens."""

    @abstractmethod
    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        """Return the first `limit` records of the backlog, oldest first, without a lease. A replay adds acked ones."""

    @abstractmethod
    async def _close(self) -> None:
        """End all leases, and close what the handle uses. `aclose` calls it once, with `_closed` already set."""

    async def aclose(self) -> None:
        """End all leases and close the handle. Every later call except `aclose` raises QueueClosed."""
        if not self._closed:
            self._closed = True
            await self._close()

    async def admit(self, *, timeout: float | None = None) -> None:
        """Wait until the backlog is not over the high water, in bytes or in records. Call it before *new* work.

        `put` does not wait in this way: a worker would wait for room while the trainer waits for the rest of its group.
        Raises AdmissionTimeout after `timeout` seconds (None: ADMISSION_TIMEOUT).
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
                    f"{stats.oldest_age:.1f} s, and the high water is {self._options.high_water_text}. Check that the "
                    "consumer runs and acks, or raise the high water."
                )
            await asyncio.sleep(min(delay, remaining))
            delay = min(delay * 2, max_delay)

    async def requeue(self, *, limit: int) -> int:
        """Put the first `limit` dead letters back as new records, and return how many.

        Raises what `put` raises; the letters before that one are then put back, and the rest stay dead letters.
        """
        requeued = 0
        while requeued < limit and (letters := await self.dead_letters(limit=min(_REQUEUE_BATCH, limit - requeued))):
            for letter in letters:
                # In this order: if the process dies in between, the record exists twice and is not lost.
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

    def _check_open(self) -> None:
        """Raise QueueClosed after `aclose`."""
        if self._closed:
            raise QueueClosed(f"{self.url}: this handle is closed")

    def _resolve_partitions(self, consume: Sequence[int] | None, partitions: int) -> tuple[int, ...]:
        """Return the partitions that this consumer may lease; `consume=None` means all. Raises QueueURLError."""
        if consume is None:
            return tuple(range(partitions))
        for partition in consume:
            if not 0 <= partition < partitions:
                raise QueueURLError(
                    f"{self.url}: there is no partition {partition} to consume; the queue was created with {partitions}"
                )
        return tuple(dict.fromkeys(consume))

    def _check_record_size(self, frames: Frames) -> int:
        """Return the size of a record. Raises QueueError or RecordTooLarge if it can never be put."""
        if not frames:
            raise QueueError(f"{self.url}: a record needs at least one frame")
        nbytes = frames_nbytes(frames)
        if nbytes > self._hard_limit or nbytes > self.max_record_bytes:
            limit = min(self.max_record_bytes, self._hard_limit)
            raise RecordTooLarge(
                f"{self.url}: a record has {nbytes} bytes, and this queue accepts at most {limit}. "
                f"Send images by reference, or raise hard_limit (at most {self.max_record_bytes})."
            )
        return nbytes

    def _queue_full_error(self, nbytes: int, backlog_records: int, backlog_bytes: int) -> QueueFull:
        return QueueFull(
            f"{self.url}: {nbytes} more bytes would exceed the hard limit of {self._hard_limit}; the backlog is "
            f"{backlog_records} records of {backlog_bytes} bytes. Check that the consumer runs and acks."
        )

    def _stale_lease_error(self, deliveries: Sequence[Delivery]) -> StaleLease:
        first = deliveries[0]
        return StaleLease(
            f"{self.url}: the lease of {len(deliveries)} record(s) has ended, the first at position {first.position} "
            f"of lane {first.lane}; another consumer gets them",
            deliveries,
        )


def frames_nbytes(frames: Frames) -> int:
    """Return the bytes of all frames together."""
    return sum([len(frame) if isinstance(frame, bytes) else frame.nbytes for frame in frames])


def partition_of(key: str, partitions: int) -> int:
    """Return the partition of a key. It is the same on every machine and in every release."""
    return crc32(key.encode("utf-8", "surrogatepass")) % partitions
