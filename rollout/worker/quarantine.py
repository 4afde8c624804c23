"""Any number together, or one alone: how a rollout that may be what kills workers is kept from taking others along."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


class Seclusion:
    """Whoever wants to be alone waits until everybody has left; meanwhile nobody comes in."""

    def __init__(self) -> None:
        self._changed = anyio.Condition()
        self._together = 0
        self._secluded = False

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        async with self._changed:
            while self._secluded:
                await self._changed.wait()
            self._together += 1
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                async with self._changed:
                    self._together -= 1
                    self._changed.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._changed:
            while self._secluded:
                await self._changed.wait()
            self._secluded = True
        try:
            async with self._changed:
                while self._together:
                    await self._changed.wait()
            yield
        finally:
            with anyio.CancelScope(shield=True):
                async with self._changed:
                    self._secluded = False
                    self._changed.notify_all()
