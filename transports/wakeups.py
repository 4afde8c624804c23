"""Waking consumers of the same process at once, whichever thread and event loop they wait on."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Wakeups:
    """Those who wait for anything to change. A waiter may be woken for nothing and looks again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def expect(self) -> asyncio.Event:
        """An event that the next `wake` sets. Taken before looking, so that no change falls in between."""
        event = asyncio.Event()
        with self._lock:
            self._waiting[event] = asyncio.get_running_loop()
        return event

    def forget(self, event: asyncio.Event) -> None:
        with self._lock:
            self._waiting.pop(event, None)

    async def wait(self, event: asyncio.Event, timeout: float) -> None:
        """Return when the event is set or the time is over."""
        expiry = asyncio.get_running_loop().call_later(timeout, event.set)
        try:
            await event.wait()
        finally:
            expiry.cancel()

    def wake(self) -> None:
        if not self._waiting:
            return
        here = asyncio.get_running_loop()
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for event, loop in waiting.items():
            if loop is here:
                event.set()
            else:
                # A loop that was closed under its waiting consumer has nobody left to wake.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(event.set)
