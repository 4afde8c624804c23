"""The contract of a queue. A queue takes records with keys, delivers them under a lease, and keeps them until the ack.

    async with open_queue("file:///data/run7/trajectories?partitions=2") as queue:
        await queue.admit()  # call it before a rollout starts, never during one
        await queue.put(encode(record), key="group-12", tag="rollout-3")

    async with open_queue("file:///data/run7/trajectories", consume=[0]) as queue:
        while (delivery := await queue.receive(timeout=5.0)) is not None:
            train_on(decode(delivery.frames))
            await delivery.ack()

A queue carries frames and does not read them. It delivers each record at least once. Records that one handle puts under
one key arrive in the order of the puts, unless a record is redelivered. `docs/queues.md` explains the whole contract.
`transports.testing.QueueConformance` tests each statement of the contract.
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
"""Seconds that `admit()` waits by default before it raises AdmissionTimeout."""

_ADMISSION_POLL = (0.005, 0.25)
_REQUEUE_BATCH = 16


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The numbers of records in a queue now. A record belongs to the backlog until it is acked, also after delivery."""

    backlog_records: int
    """The number of records that are not acked."""
    backlog_bytes: int
    """The total size of the frames of the unacked records, in bytes."""
    oldest_age: float
    """Seconds since the oldest record of the backlog was put; 0.0 if the backlog is empty."""
    redeliveries: int
    """The number of repeated deliveries since the queue was created."""
    dead_letters: int
    """The number of rejected records that the queue keeps."""
    retained_records: int = 0
    """The number of acked records that the queue retains. They are not in the backlog; only a replay delivers them."""
    refused_messages: int = 0
    """The number of messages that a `zmq://` hub refused, because of their form or the version of their protocol."""


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetter:
    """A record that a consumer rejected, with the reason."""

    id: str
    """The name of the dead letter in the queue; `discard` needs it."""
    frames: Frames
    """The frames of the record, as they were put."""
    key: str
    """The key under which the record was put."""
    tag: str
    """The label that the producer gave the record."""
    reason: str
    """Why the consumer rejected the record."""


@dataclass(frozen=True, slots=True, eq=False)
class Peeked:
    """A record that `peek` returns. It is from the backlog, or from a replay."""

    frames: Frames
    """The frames of the record, as they were put."""
    key: str
    """The key under which the record was put."""
    tag: str
    """The label that the producer gave the record."""
    partition: int
    """The partition of the record."""
    position: int
    """The position of the record in its lane."""
    delivered: bool
    """Whether the record was delivered before. True also if a consumer has only read the record ahead."""
    acked: bool = False
    """Whether the record is acked, and the queue retains it for a replay. Always false in the backlog."""


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A record that this consumer received. Its lease lasts until the ack, nack or reject, or until it expires."""

    frames: Frames
    """The frames of the record, as they were put."""
    key: str
    """The key under which the record was put."""
    tag: str
    """The producer's label. The tag is not in the frames, so a record that cannot be decoded still has a name."""
    partition: int
    """The partition of the record."""
    lane: str
    """The lane of the record: an ordered stream in the queue. A redelivered record keeps its lane and position."""
    position: int
    """The number of the record in its lane. Later records of the lane have higher numbers."""
    redelivered: bool
    """Whether the record may have been delivered before."""
    epoch: int
    """The fencing epoch of the lease under which the record was delivered. An ack under an old epoch is refused."""
    queue: Queue = field(repr=False)
    """The handle that received the record."""

    @property
    def nbytes(self) -> int:
        """The total size of the frames, in bytes."""
        return frames_nbytes(self.frames)

    async def ack(self) -> None:
        """Tell the queue that it may forget the record. Raises StaleLease if the lease has ended."""
        await self.queue.ack([self])

    async def nack(self, delay: float = 0.0) -> None:
        """Give the record back; the queue delivers it again after `delay` seconds. Raises StaleLease, as `ack` does."""
        await self.queue.nack(self, delay)

    async def reject(self, reason: str) -> None:
        """Make the record a dead letter, with the reason. Raises StaleLease, as `ack` does."""
        await self.queue.reject(self, reason)


class StaleLease(QueueError):
    """An ack, nack or reject came after the end of the record's lease. Another consumer gets the record.

    `deliveries` contains the refused deliveries. The other deliveries of the same call are acked.
    """

    def __init__(self, message: str, deliveries: Sequence[Delivery]) -> None:
        super().__init__(message)
        self.deliveries = tuple(deliveries)


class Queue(ABC):
    """A handle on a queue, for a producer, a consumer or an administrator. Use it on the event loop that opened it.

    A handle takes its first lease in the first `receive`. `release` and `aclose` end the leases of the handle.
    """

    max_record_bytes: ClassVar[int] = 1 << 30
    """The size of the largest record that the transport can carry, in bytes."""

    ends: ClassVar[bool] = False
    """Whether None from `receive` means that the queue has ended. True only for a replay."""

    def __init__(self, url: str, options: QueueOptions) -> None:
        self.url = without_password(hide_passwords(url))
        self._options = options
        self._hard_limit = options.effective_hard_limit
        self._consumed_partitions: tuple[int, ...] | None = None
        self._closed = False

    @abstractmethod
    async def put(self, frames: Frames, *, key: str, tag: str = "") -> None:
        """Put a record; return when it is as durable as the URL promises. The caller may then reuse its buffers.

        If one of these errors is raised, the queue has not accepted the record.

        Raises:
            RecordTooLarge: the record is larger than the hard limit, or larger than the transport can carry.
            QueueFull: with the record, the backlog would exceed the hard limit.
            QueueStorageError: the disk or the server refused the record.
        """

    @abstractmethod
    async def receive(self, *, timeout: float) -> Delivery | None:
        """Lease and return the next record. Return None if no record comes within `timeout` seconds.

        A cancelled call loses nothing: a record is either returned or still in the queue.
        """

    @abstractmethod
    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Ack all these deliveries. A second ack under the same lease changes nothing.

        If some leases have ended, the other deliveries are acked, and then StaleLease is raised.
        """

    @abstractmethod
    async def nack(self, delivery: Delivery, delay: float) -> None:
        """Give the record of a delivery back. See `Delivery.nack`."""

    @abstractmethod
    async def reject(self, delivery: Delivery, reason: str) -> None:
        """Make the record of a delivery a dead letter. See `Delivery.reject`."""

    @abstractmethod
    async def release(self) -> None:
        """End all leases of this handle. The next consumer gets the unacked records; later acks of them are refused."""

    @property
    def limits(self) -> QueueOptions:
        """The options of the URL: the number of partitions, the high water and the hard limit."""
        return self._options

    async def partition_count(self) -> int:
        """Return the number of partitions with which the queue was created."""
        return self._options.partitions or 1

    @property
    def consumed_partitions(self) -> tuple[int, ...] | None:
        """The partitions that this handle may lease. None: all of them, or not known before the first `receive`."""
        return self._consumed_partitions

    @property
    def holder(self) -> str:
        """The name of this handle for `expire_leases`. Empty if other handles cannot end the leases of this handle."""
        return ""

    async def expire_leases(self, holder: str) -> None:  # noqa: B027 - optional on purpose
        """End the leases of another handle. Call this when the process of that handle is dead.

        If that process still lives, its acks are refused. Without this call, the leases expire some seconds later. So a
        transport need not implement it.
        """

    @abstractmethod
    async def stats(self) -> QueueStats:
        """Return the numbers of records in the queue now. The call is cheap enough to be made before each rollout."""

    @abstractmethod
    async def dead_letters(self, *, limit: int = 100) -> Sequence[DeadLetter]:
        """Return the oldest `limit` rejected records, oldest first. They stay in the queue."""

    @abstractmethod
    async def discard(self, letter: DeadLetter) -> None:
        """Remove a dead letter. Do nothing if the queue does not have it any more."""

    @abstractmethod
    async def peek(self, *, limit: int) -> Sequence[Peeked]:
        """Return the oldest `limit` records of the backlog, without a lease. A replay also returns acked records."""

    @abstractmethod
    async def _close(self) -> None:
        """End all leases, and close the files or connections of the handle. `aclose` calls this method once."""

    async def aclose(self) -> None:
        """End all leases and close the handle. Every later call except `aclose` raises QueueClosed."""
        if not self._closed:
            self._closed = True
            await self._close()

    async def admit(self, *, timeout: float | None = None) -> None:
        """Wait until the backlog is not above the high water, in bytes and in records. Call it before *new* work.

        `put` never waits for the backlog. Otherwise a worker in the middle of a group could wait for the trainer, while
        the trainer waits for the rest of that group.

        Raises AdmissionTimeout after `timeout` seconds, or after ADMISSION_TIMEOUT seconds if `timeout` is None.
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
                    f"{self.url}: the queue has had no room for new work for {timeout_seconds:g} s. The backlog is "
                    f"{stats.backlog_records} records with {stats.backlog_bytes} bytes, and the oldest record has "
                    f"waited for {stats.oldest_age:.1f} s. The high water is {self._options.high_water_text}. Check "
                    "that the consumer runs and acks, or raise the high water."
                )
            await asyncio.sleep(min(delay, remaining))
            delay = min(delay * 2, max_delay)

    async def requeue(self, *, limit: int) -> int:
        """Put the oldest `limit` dead letters back as new records. Return the number of records that were put back.

        If a `put` fails, its error is raised. The earlier letters are put back then; the others stay dead letters.
        """
        requeued = 0
        while requeued < limit and (letters := await self.dead_letters(limit=min(_REQUEUE_BATCH, limit - requeued))):
            for letter in letters:
                # Put first, then discard: if the process dies in between, the record exists twice, but is not lost.
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
            raise QueueClosed(f"{self.url}: this handle is closed; open the queue again")

    def _resolve_partitions(self, consume: Sequence[int] | None, partitions: int) -> tuple[int, ...]:
        """Return the partitions that this consumer may lease; all if `consume` is None.

        Raises QueueURLError for a partition that the queue does not have.
        """
        for partition in consume or ():
            if not 0 <= partition < partitions:
                raise QueueURLError(
                    f"{self.url}: cannot consume partition {partition}, because the queue was created with "
                    f"{partitions} partition(s); use a number from 0 to {partitions - 1}"
                )
        self._consumed_partitions = tuple(range(partitions) if consume is None else dict.fromkeys(consume))
        return self._consumed_partitions

    def _check_record_size(self, frames: Frames) -> int:
        """Return the size of a record in bytes. Raises QueueError if it has no frames, RecordTooLarge if too large."""
        if not frames:
            raise QueueError(f"{self.url}: a record needs at least one frame")
        nbytes = frames_nbytes(frames)
        if nbytes > self._hard_limit or nbytes > self.max_record_bytes:
            limit = min(self.max_record_bytes, self._hard_limit)
            raise RecordTooLarge(
                f"{self.url}: a record has {nbytes} bytes, but this queue accepts at most {limit} bytes. "
                f"Send images by reference, or raise hard_limit (to at most {self.max_record_bytes})."
            )
        return nbytes

    def _queue_full_error(self, nbytes: int, backlog_records: int, backlog_bytes: int) -> QueueFull:
        return QueueFull(
            f"{self.url}: a record of {nbytes} bytes would exceed the hard limit of {self._hard_limit} bytes. The "
            f"backlog is {backlog_records} records with {backlog_bytes} bytes. Check that the consumer runs and acks."
        )

    def _stale_lease_error(self, deliveries: Sequence[Delivery]) -> StaleLease:
        first = deliveries[0]
        return StaleLease(
            f"{self.url}: the lease of {len(deliveries)} record(s) has ended. The first record is at position "
            f"{first.position} of lane {first.lane}. Drop these records: another consumer gets them",
            deliveries,
        )


def frames_nbytes(frames: Frames) -> int:
    """Return the total size of the frames in bytes."""
    return sum([len(frame) if isinstance(frame, bytes) else frame.nbytes for frame in frames])


def partition_of(key: str, partitions: int) -> int:
    """Return the partition of a key. It is the same on every machine and in every release."""
    return crc32(key.encode("utf-8", "surrogatepass")) % partitions
