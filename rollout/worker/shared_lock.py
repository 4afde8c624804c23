"""A lock that many tasks hold in shared mode, or one task in exclusive mode.

A rollout that may have killed a worker is played in exclusive mode. If it kills its worker again, no other rollout dies
with it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


class SharedLock:
    """A lock with two modes. While a task waits for the exclusive mode, no other task gets the shared mode."""

    def __init__(self) -> None:
        self._changed = anyio.Condition()
        self._shared_count = 0
        self._exclusive_taken = False

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Hold the lock in shared mode, together with other tasks."""
        async with self._changed:
            while self._exclusive_taken:
                await self._changed.wait()
            self._shared_count += 1
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                async with self._changed:
                    self._shared_count -= 1
                    self._changed.notify_all()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Hold the lock in exclusive mode, while no other task holds it."""
        async with self._changed:
            while self._exclusive_taken:
                await self._changed.wait()
            self._exclusive_taken = True
        try:
            async with self._changed:
                while self._shared_count:
                    await self._changed.wait()
            yield
        finally:
            with anyio.CancelScope(shield=True):
                async with self._changed:
                    self._exclusive_taken = False
                    self._changed.notify_all()
