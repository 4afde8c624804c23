"""A cache that does each piece of work once, however many callers ask for it at the same time.

A shared task runs as long as one caller waits for it, and is cancelled with the last one. Only a complete value is
kept. An error goes to the callers that wait, and the next caller starts a new task.
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
    """Where a value came from.

    Attributes:
        KEPT: it was in the cache.
        JOINED: the caller waited for a shared task that another caller started.
        MADE: the caller's own task made it.
    """

    KEPT = "kept"
    JOINED = "joined"
    MADE = "made"


@dataclass(slots=True)
class _SharedTask(Generic[T]):
    task: "asyncio.Task[T]"
    waiters: int = 0


class AsyncSingleFlightCache(Generic[T]):
    """Keeps at most `max_bytes` of values and drops the least recently used first. For one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, T] = OrderedDict()
        self._running: dict[str, _SharedTask[T]] = {}
        self.nbytes = 0

    async def get(self, key: str, make: Callable[[], Awaitable[T]]) -> tuple[T, Origin]:
        """The value under this key. `make` is called if the value is not cached and no shared task is making it."""
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
                # Removed before it is cancelled: nobody may join a shared task that will not finish.
                del self._running[key]
                shared_task.task.cancel()

    async def _run(self, key: str, make: Callable[[], Awaitable[T]]) -> T:
        shared_task = self._running[key]
        try:
            value = await make()
        except asyncio.CancelledError:
            if shared_task.waiters:
                # No caller cancelled this shared task, so its waiters must not see a CancelledError.
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
