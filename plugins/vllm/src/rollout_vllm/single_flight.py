"""A cache that makes each value once, even if many callers need it at the same time.

All callers of a value wait for one shared task. The task is cancelled when its last caller is cancelled. All waiting
callers get an error of the task. Errors are not cached, so the next caller starts a new task.
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
        """The size of the value in bytes."""


T = TypeVar("T", bound=HasNbytes)


class Origin(StrEnum):
    """How a caller got a value.

    Attributes:
        KEPT: from the cache.
        JOINED: from a task that another caller had started.
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
    """A cache of at most `max_bytes`, which removes the least recently used values. Use it on one event loop only.

    Attributes:
        nbytes: the total size of the cached values, in bytes.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, T] = OrderedDict()
        self._running: dict[str, _SharedTask[T]] = {}
        self.nbytes = 0

    async def get(self, key: str, make: Callable[[], Awaitable[T]]) -> tuple[T, Origin]:
        """Return the value of a key and its origin. Call `make` if the value is not cached and no task is making it."""
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
                # Remove the task before cancelling it, so that no caller joins a cancelled task.
                del self._running[key]
                shared_task.task.cancel()

    async def _run(self, key: str, make: Callable[[], Awaitable[T]]) -> T:
        shared_task = self._running[key]
        try:
            value = await make()
        except asyncio.CancelledError:
            if shared_task.waiters:
                # No caller has cancelled this task, so its callers must not get a CancelledError.
                raise MaterialisationFailed("the code that processes an image cancelled itself") from None
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
