"""A cache that does each piece of work once, however many ask for it at the same time.

Work that many wait for goes on while one of them is left, and is cancelled with the last. Only what was made whole is
kept: an error goes to those who waited for it, and whoever comes later starts anew.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from .errors import MaterialisationFailed


class HasNbytes(Protocol):
    """What can be kept: immutable, and of a known size."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=HasNbytes)


class Origin(StrEnum):
    """Where a value came from: kept from earlier, made by another's flight, or made by one's own."""

    KEPT = "kept"
    JOINED = "joined"
    MADE = "made"


@dataclass(slots=True)
class _SharedTask(Generic[T]):
    task: "asyncio.Task[T]"
    waiters: int = 0


class AsyncSingleFlightCache(Generic[T]):
    """At most `max_bytes` of values, those used longest ago leave first. For one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, T] = OrderedDict()
        self._running: dict[str, _SharedTask[T]] = {}
        self.nbytes = 0

    async def get(self, key: str, make: Callable[[], Awaitable[T]]) -> tuple[T, Origin]:
        """The value under this key; `make` is called if nobody has it or is making it."""
        cached = self._entries.get(key)
        if cached is not None:
            self._entries.move_to_end(key)
            return cached, Origin.KEPT
        shared_task, origin = self._running.get(key), Origin.JOINED
        if shared_task is None:
            shared_task, origin = _SharedTask(asyncio.ensure_future(self._run(key, make))), Origin.MADE
            self._running[key] = shared_task
        shared_task.waiters += 1
        try:
            return await asyncio.shield(shared_task.task), origin
        finally:
            shared_task.waiters -= 1
            if not shared_task.waiters and not shared_task.task.done():
                # Forgotten before it is cancelled: nobody may join a flight that will not arrive.
                del self._running[key]
                shared_task.task.cancel()

    async def _run(self, key: str, make: Callable[[], Awaitable[T]]) -> T:
        shared_task = self._running[key]
        try:
            value = await make()
        except asyncio.CancelledError:
            if shared_task.waiters:
                # Nobody cancelled this flight, so those on it must not take themselves for cancelled.
                raise MaterialisationFailed("the work was cancelled from within") from None
            raise
        finally:
            if self._running.get(key) is shared_task:
                del self._running[key]
        if shared_task.waiters:
            self._store(key, value)
        return value

    def _store(self, key: str, value: T) -> None:
        if value.nbytes > self._max_bytes:
            return
        self._entries[key] = value
        self.nbytes += value.nbytes
        while self.nbytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.nbytes -= oldest.nbytes
