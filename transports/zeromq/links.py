"""The operations of a `zmq://` handle on the records, which are in its own hub or in the hub of another handle.

The name of a record has its producer and the producer's own number, so that the record keeps its lane and position when
a new hub gets it again. Within a hub it is in a MemoryQueue, with the name before its tag.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transports.base import DeadLetter, Delivery, Frames, Peeked, QueueStats, StaleLease
from transports.memory import MemoryQueue

_PRODUCER = slice(0, 16)
_NUMBER = slice(16, 32)
_TAG = slice(32, None)


class LeaseToken(NamedTuple):
    """The identity of a leased record in its hub.

    Attributes:
        hub: the name of the hub.
        partition: the partition of the record.
        position: its position in the hub's MemoryQueue.
        epoch: the epoch of its lease there.
    """

    hub: str
    partition: int
    position: int
    epoch: int


class LeasedRecord(NamedTuple):
    """A record as a hub leases it to a handle.

    Attributes:
        token: the identity of the record in the hub.
        frames: its frames.
        key: its key.
        name: its producer, its number and its tag, as `format_record_name` joins them.
        redelivered: whether it may have been delivered before.
    """

    token: LeaseToken
    frames: Frames
    key: str
    name: str
    redelivered: bool

    @property
    def producer(self) -> str:
        return self.name[_PRODUCER]

    @property
    def number(self) -> int:
        return int(self.name[_NUMBER], 16)

    @property
    def tag(self) -> str:
        return self.name[_TAG]


def format_record_name(producer: str, number: int, tag: str) -> str:
    return f"{producer}{number:016x}{tag}"


def parse_record_name(name: str) -> tuple[str, int]:
    """The producer of a record, and its number."""
    return name[_PRODUCER], int(name[_NUMBER], 16)


class HubLink(ABC):
    """The operations of the contract of a queue, with tokens instead of deliveries."""

    @abstractmethod
    async def put(self, frames: Frames, key: str, name: str) -> None:
        """Put a record. The frames belong to the hub from now on: nobody may change them."""

    @abstractmethod
    async def receive(self, timeout: float) -> LeasedRecord | None:
        """The next record, or None when none came in time. Cancelling it loses nothing."""

    @abstractmethod
    async def ack(self, tokens: Sequence[LeaseToken]) -> list[LeaseToken]:
        """Ack records; returns the tokens that are stale."""

    @abstractmethod
    async def nack(self, token: LeaseToken, delay: float) -> bool: ...

    @abstractmethod
    async def reject(self, token: LeaseToken, reason: str) -> bool: ...

    @abstractmethod
    async def release(self) -> None: ...

    @abstractmethod
    async def stats(self) -> QueueStats: ...

    @abstractmethod
    async def dead_letters(self, limit: int) -> list[DeadLetter]: ...

    @abstractmethod
    async def discard(self, letter: DeadLetter) -> None: ...

    @abstractmethod
    async def peek(self, limit: int) -> list[Peeked]: ...

    @abstractmethod
    async def close(self) -> None: ...


class LocalHubLink(HubLink):
    """A link to the hub of this process."""

    def __init__(self, hub_name: str, queue: MemoryQueue) -> None:
        self._hub_name = hub_name
        self._queue = queue

    async def put(self, frames: Frames, key: str, name: str) -> None:
        self._queue.put_without_copy(frames, key, name)

    async def receive(self, timeout: float) -> LeasedRecord | None:
        delivery = await self._queue.receive(timeout=timeout)
        if delivery is None:
            return None
        token = LeaseToken(self._hub_name, delivery.partition, delivery.position, delivery.epoch)
        return LeasedRecord(token, delivery.frames, delivery.key, delivery.tag, delivery.redelivered)

    async def ack(self, tokens: Sequence[LeaseToken]) -> list[LeaseToken]:
        stale = [token for token in tokens if token.hub != self._hub_name]
        return stale + self._queue.ack_positions([token for token in tokens if token.hub == self._hub_name])

    async def nack(self, token: LeaseToken, delay: float) -> bool:
        try:
            await self._queue.nack(self._delivery_of_token(token), delay)
        except StaleLease:
            return False
        return token.hub == self._hub_name

    async def reject(self, token: LeaseToken, reason: str) -> bool:
        try:
            await self._queue.reject(self._delivery_of_token(token), reason)
        except StaleLease:
            return False
        return token.hub == self._hub_name

    async def release(self) -> None:
        await self._queue.release()

    async def stats(self) -> QueueStats:
        return await self._queue.stats()

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        letters = await self._queue.dead_letters(limit=limit)
        return [replace(letter, tag=letter.tag[_TAG]) for letter in letters]

    async def discard(self, letter: DeadLetter) -> None:
        await self._queue.discard(letter)

    async def peek(self, limit: int) -> list[Peeked]:
        peeked = await self._queue.peek(limit=limit)
        return [replace(record, tag=record.tag[_TAG], position=parse_record_name(record.tag)[1]) for record in peeked]

    async def close(self) -> None:
        await self._queue.aclose()

    def _delivery_of_token(self, token: LeaseToken) -> Delivery:
        return Delivery(
            frames=(),
            key="",
            tag="",
            partition=token.partition,
            lane=str(token.partition),
            position=token.position,
            redelivered=False,
            epoch=token.epoch if token.hub == self._hub_name else 0,
            queue=self._queue,
        )
