"""A cache that makes each value once, even if many callers ask for it at the same time.

The callers of a value wait for one shared task. It is cancelled when its last caller is cancelled. An error goes to all
waiting callers and is not cached, so the next caller starts a new task.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from .errors import MaterialisationFailed


class HasNbytes(Protocol):
    """An immutable value of a known size."""

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""


T = TypeVar("T", bound=HasNbytes)


class Origin(StrEnum):
    """Where a value came from.

    Attributes:
        KEPT: from the cache.
        JOINED: from a task that another caller started.
        MADE: from a task that this caller started.
    """

    KEPT = "kept"
    JOINED = "joined"
    MADE = "made"


@dataclass(slots=True)
class _SharedTask(Generic[T]):
    task: "asyncio.Task[T]"
    waiters: int = 0


class AsyncSingleFlightCache(Generic[T]):
    """A cache of at most `max_bytes`, which drops the least recently used values first. It is for one event loop.

    Attributes:
        nbytes: how many bytes the cached values take.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, T] = OrderedDict()
        self._running: dict[str, _SharedTask[T]] = {}
        self.nbytes = 0

    async def get(self, key: str, make: Callable[[], Awaitable[T]]) -> tuple[T, Origin]:
        """Return the value of a key and its origin. `make` is called if it is not cached and no task is making it."""
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
                # It is removed before it is cancelled, so that no caller joins a cancelled task.
                del self._running[key]
                shared_task.task.cancel()

    async def _run(self, key: str, make: Callable[[], Awaitable[T]]) -> T:
        shared_task = self._running[key]
        try:
            value = await make()
        except asyncio.CancelledError:
            if shared_task.waiters:
                # No caller cancelled this task, so its callers must not see a CancelledError.
                raise MaterialisationFailed("the processing of an image was cancelled by its own code") from None
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
