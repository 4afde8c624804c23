"""What a handle of `zmq://` asks for, wherever the records are: here in the hub it serves, or there in another's.

A record is named by its producer and the producer's own number, so that it keeps its lane and position when a new hub
gets it a second time. Within a hub it travels in a MemoryQueue, with that name in front of its tag.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transports.base import DeadLetter, Delivery, Frames, Peeked, QueueStats
from transports.errors import StaleLease
from transports.memory import MemoryQueue

_PRODUCER = slice(0, 16)
_NUMBER = slice(16, 32)
_TAG = slice(32, None)


class Token(NamedTuple):
    """By what a hub knows a record that it has lent."""

    hub: str
    partition: int
    position: int
    epoch: int


class Lent(NamedTuple):
    """A record as a hub lends it."""

    token: Token
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


def record_name(producer: str, number: int, tag: str) -> str:
    return f"{producer}{number:016x}{tag}"


def named(name: str) -> tuple[str, int]:
    """The producer of a record, and its number."""
    return name[_PRODUCER], int(name[_NUMBER], 16)


class Link(ABC):
    """Each of these as in the contract of a queue, in terms of tokens."""

    @abstractmethod
    async def put(self, frames: Frames, key: str, name: str) -> None:
        """The frames belong to the hub from now on: nobody changes them."""

    @abstractmethod
    async def take(self, timeout: float) -> Lent | None:
        """Cancelling it loses nothing."""

    @abstractmethod
    async def settle(self, tokens: Sequence[Token]) -> list[Token]:
        """Ack them; those that are stale come back."""

    @abstractmethod
    async def give_back(self, token: Token, delay: float) -> bool: ...

    @abstractmethod
    async def reject(self, token: Token, reason: str) -> bool: ...

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


class LocalLink(Link):
    """Straight into the hub of this process."""

    def __init__(self, hub: str, queue: MemoryQueue) -> None:
        self._hub = hub
        self._queue = queue

    async def put(self, frames: Frames, key: str, name: str) -> None:
        self._queue.put_owned(frames, key, name)

    async def take(self, timeout: float) -> Lent | None:
        found = await self._queue.receive(timeout=timeout)
        if found is None:
            return None
        token = Token(self._hub, found.partition, found.position, found.epoch)
        return Lent(token, found.frames, found.key, found.tag, found.redelivered)

    async def settle(self, tokens: Sequence[Token]) -> list[Token]:
        stale = [token for token in tokens if token.hub != self._hub]
        return stale + self._queue.settle([token for token in tokens if token.hub == self._hub])

    async def give_back(self, token: Token, delay: float) -> bool:
        try:
            await self._queue.nack(self._delivery(token), delay)
        except StaleLease:
            return False
        return token.hub == self._hub

    async def reject(self, token: Token, reason: str) -> bool:
        try:
            await self._queue.reject(self._delivery(token), reason)
        except StaleLease:
            return False
        return token.hub == self._hub

    async def release(self) -> None:
        await self._queue.release()

    async def stats(self) -> QueueStats:
        return await self._queue.stats()

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        found = await self._queue.dead_letters(limit=limit)
        return [replace(dead, tag=dead.tag[_TAG]) for dead in found]

    async def discard(self, letter: DeadLetter) -> None:
        await self._queue.discard(letter)

    async def peek(self, limit: int) -> list[Peeked]:
        found = await self._queue.peek(limit=limit)
        return [replace(record, tag=record.tag[_TAG], position=named(record.tag)[1]) for record in found]

    async def close(self) -> None:
        await self._queue.aclose()

    def _delivery(self, token: Token) -> Delivery:
        return Delivery(
            frames=(),
            key="",
            tag="",
            partition=token.partition,
            lane=str(token.partition),
            position=token.position,
            redelivered=False,
            epoch=token.epoch if token.hub == self._hub else 0,
            queue=self._queue,
        )
