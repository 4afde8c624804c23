"""A lock that many tasks hold in shared mode, or one task in exclusive mode.

A rollout that may be the one that kills workers is played in exclusive mode, so that no other rollout dies with it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


class SharedLock:
    """The lock. While a task waits for the exclusive mode, no new shared holder gets in."""

    def __init__(self) -> None:
        self._changed = anyio.Condition()
        self._shared_count = 0
        self._exclusive_taken = False

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Hold the lock together with others."""
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
        """Hold the lock alone."""
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
