"""The link of a `zmq://` handle to the hub that keeps the records. The hub belongs to this handle or to another one.

The name of a record contains its producer, the number that the producer gave it, and its tag. So the record keeps its
lane and position when it is sent to a new hub. A hub keeps its records in a MemoryQueue, with the name as the tag. A
record is settled when it is acked or rejected.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transports.base import DeadLetter, Frames, Peeked, QueueStats
from transports.memory import MemoryQueue
from transports.zeromq.refusals import Refusals

_PRODUCER = slice(0, 16)
_NUMBER = slice(16, 32)
_TAG = slice(32, None)
RECORD_NAME_PATTERN = re.compile(r"[0-9a-f]{32}.*", re.DOTALL)


class LeaseToken(NamedTuple):
    """Identifies a leased record in its hub."""

    hub: str
    """The name of the hub."""
    partition: int
    """The partition of the record."""
    position: int
    """The position of the record in the hub's MemoryQueue."""
    epoch: int
    """The epoch of the record's lease in the hub's MemoryQueue."""


class LeasedRecord(NamedTuple):
    """A record that a hub has leased to a handle."""

    token: LeaseToken
    """Identifies the record in the hub."""
    frames: Frames
    """The frames of the record."""
    key: str
    """The key of the record."""
    name: str
    """The name of the record: its producer, number and tag, which `format_record_name` has joined."""
    redelivered: bool
    """Whether the record may have been delivered before."""

    @property
    def producer(self) -> str:
        """The id of the producer that put the record."""
        return self.name[_PRODUCER]

    @property
    def number(self) -> int:
        """The number that the producer gave the record."""
        return int(self.name[_NUMBER], 16)

    @property
    def tag(self) -> str:
        """The label that the producer gave the record."""
        return self.name[_TAG]


def format_record_name(producer: str, number: int, tag: str) -> str:
    """Return the name of a record: its producer, its number and its tag, joined."""
    return f"{producer}{number:016x}{tag}"


def parse_record_name(name: str) -> tuple[str, int]:
    """Return the producer and the number from the name of a record."""
    return name[_PRODUCER], int(name[_NUMBER], 16)


class HubLink(ABC):
    """The operations of a queue, as a hub does them. They take tokens instead of deliveries.

    Attributes:
        partitions: the number of partitions of the queue.
    """

    partitions: int

    @abstractmethod
    async def put(self, frames: Frames, key: str, tag: str) -> None:
        """Put a record. The caller must not change its frames later.

        A record gets its number as the last step, when nothing can delay or refuse it any more. So a put that fails or
        is cancelled leaves no gap in the numbers. If there were a gap, the hub would wait for the missing number.
        """

    @abstractmethod
    async def receive(self, timeout: float) -> LeasedRecord | None:
        """Lease and return the next record. Return None if no record comes within `timeout` seconds.

        A cancelled call loses nothing: a record is either returned or still in the queue.
        """

    @abstractmethod
    async def ack(self, tokens: Sequence[LeaseToken]) -> list[LeaseToken]:
        """Ack records. Return the tokens of the records whose lease has ended; they are not acked."""

    @abstractmethod
    async def nack(self, token: LeaseToken, delay: float) -> bool:
        """Deliver the record again after `delay` seconds. Return False if its lease has ended."""

    @abstractmethod
    async def reject(self, token: LeaseToken, reason: str) -> bool:
        """Make the record a dead letter. Return False if its lease has ended."""

    @abstractmethod
    async def release(self) -> None:
        """End all leases of this handle."""

    @abstractmethod
    async def stats(self) -> QueueStats:
        """Return the numbers of records in the queue now."""

    @abstractmethod
    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Return the oldest `limit` dead letters."""

    @abstractmethod
    async def discard(self, letter: DeadLetter) -> None:
        """Remove a dead letter."""

    @abstractmethod
    async def peek(self, limit: int) -> list[Peeked]:
        """Return the oldest `limit` records of the backlog, without a lease."""

    @abstractmethod
    async def close(self) -> None:
        """End the leases of this link, and close it."""


class LocalHubLink(HubLink):
    """A link to the hub in this process. It is used by the handle that serves the hub, or for one remote handle."""

    def __init__(
        self, hub_name: str, queue: MemoryQueue, refusals: Refusals, producer: str, *, next_number: int = 0
    ) -> None:
        self.next_number = next_number
        self.partitions = queue.partitions
        self._hub_name = hub_name
        self._queue = queue
        self._refusals = refusals
        self._producer = producer

    async def put(self, frames: Frames, key: str, tag: str) -> None:
        """See `HubLink.put`."""
        self.put_now(frames, key, tag)

    def put_now(self, frames: Frames, key: str, tag: str) -> None:
        """Put a record, as `put` does, but without waiting."""
        self._queue.put_without_copy(frames, key, format_record_name(self._producer, self.next_number, tag))
        self.next_number += 1

    async def receive(self, timeout: float) -> LeasedRecord | None:
        """See `HubLink.receive`."""
        delivery = await self._queue.receive(timeout=timeout)
        if delivery is None:
            return None
        token = LeaseToken(self._hub_name, delivery.partition, delivery.position, delivery.epoch)
        return LeasedRecord(token, delivery.frames, delivery.key, delivery.tag, delivery.redelivered)

    async def ack(self, tokens: Sequence[LeaseToken]) -> list[LeaseToken]:
        """See `HubLink.ack`."""
        stale = [token for token in tokens if not self._is_own(token)]
        return stale + self._queue.ack_positions([token for token in tokens if self._is_own(token)])

    async def nack(self, token: LeaseToken, delay: float) -> bool:
        """See `HubLink.nack`."""
        return self._is_own(token) and self._queue.nack_position(token, delay)

    async def reject(self, token: LeaseToken, reason: str) -> bool:
        """See `HubLink.reject`."""
        return self._is_own(token) and self._queue.reject_position(token, reason)

    async def release(self) -> None:
        """See `HubLink.release`."""
        await self._queue.release()

    async def stats(self) -> QueueStats:
        """See `HubLink.stats`."""
        return replace(await self._queue.stats(), refused_messages=self._refusals.count)

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """See `HubLink.dead_letters`."""
        letters = await self._queue.dead_letters(limit=limit)
        return [replace(letter, tag=letter.tag[_TAG]) for letter in letters]

    async def discard(self, letter: DeadLetter) -> None:
        """See `HubLink.discard`."""
        await self._queue.discard(letter)

    async def peek(self, limit: int) -> list[Peeked]:
        """See `HubLink.peek`."""
        peeked = await self._queue.peek(limit=limit)
        return [replace(record, tag=record.tag[_TAG], position=parse_record_name(record.tag)[1]) for record in peeked]

    async def close(self) -> None:
        """See `HubLink.close`."""
        await self._queue.aclose()

    def _is_own(self, token: LeaseToken) -> bool:
        return token.hub == self._hub_name and token.partition < self.partitions
