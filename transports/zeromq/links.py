"""The operations of a `zmq://` handle on the records, which are in its own hub or in the hub of another handle.

The name of a record has its producer and the producer's own number, so that the record keeps its lane and position when
a new hub gets it again. Within a hub it is in a MemoryQueue, with the name before its tag.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transports.base import DeadLetter, Delivery, Frames, Peeked, QueueStats, StaleLease
from transports.memory import MemoryQueue
from transports.zeromq.refusals import Refusals

_PRODUCER = slice(0, 16)
_NUMBER = slice(16, 32)
_TAG = slice(32, None)
RECORD_NAME_PATTERN = re.compile(r"[0-9a-f]{32}.*", re.DOTALL)


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
    async def put(self, frames: Frames, key: str, tag: str) -> None:
        """Put a record. The frames belong to the hub from now on: nobody may change them.

        A record gets its number when nothing can hold it back or refuse it any more. So one that fails, or whose caller
        is cancelled, leaves no gap: the hub waits for the next number.
        """

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
    """A link to the hub of this process, for one producer: the handle that serves, or a remote one."""

    def __init__(
        self, hub_name: str, queue: MemoryQueue, refusals: Refusals, producer: str, *, next_number: int = 0
    ) -> None:
        self.next_number = next_number
        self._hub_name = hub_name
        self._queue = queue
        self._refusals = refusals
        self._producer = producer

    async def put(self, frames: Frames, key: str, tag: str) -> None:
        self.put_now(frames, key, tag)

    def put_now(self, frames: Frames, key: str, tag: str) -> None:
        self._queue.put_without_copy(frames, key, format_record_name(self._producer, self.next_number, tag))
        self.next_number += 1

    async def receive(self, timeout: float) -> LeasedRecord | None:
        delivery = await self._queue.receive(timeout=timeout)
        if delivery is None:
            return None
        token = LeaseToken(self._hub_name, delivery.partition, delivery.position, delivery.epoch)
        return LeasedRecord(token, delivery.frames, delivery.key, delivery.tag, delivery.redelivered)

    async def ack(self, tokens: Sequence[LeaseToken]) -> list[LeaseToken]:
        stale = [token for token in tokens if not self._is_own(token)]
        return stale + self._queue.ack_positions([token for token in tokens if self._is_own(token)])

    async def nack(self, token: LeaseToken, delay: float) -> bool:
        if not self._is_own(token):
            return False
        try:
            await self._queue.nack(self._delivery_of_token(token), delay)
        except StaleLease:
            return False
        return True

    async def reject(self, token: LeaseToken, reason: str) -> bool:
        if not self._is_own(token):
            return False
        try:
            await self._queue.reject(self._delivery_of_token(token), reason)
        except StaleLease:
            return False
        return True

    async def release(self) -> None:
        await self._queue.release()

    async def stats(self) -> QueueStats:
        return replace(await self._queue.stats(), refused_messages=self._refusals.count)

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

    def _is_own(self, token: LeaseToken) -> bool:
        return token.hub == self._hub_name and token.partition < self._queue.partitions

    def _delivery_of_token(self, token: LeaseToken) -> Delivery:
        return Delivery(
            frames=(),
            key="",
            tag="",
            partition=token.partition,
            lane=str(token.partition),
            position=token.position,
            redelivered=False,
            epoch=token.epoch,
            queue=self._queue,
        )
