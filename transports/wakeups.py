"""Wakes consumers of the same process at once, on any thread and event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Wakeups:
    """The consumers that wait for a change. A waiter may be woken for nothing and must look again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def register(self) -> asyncio.Event:
        """An event that the next `wake_all` sets. Register before looking, so that no change is missed."""
        event = asyncio.Event()
        with self._lock:
            self._waiters[event] = asyncio.get_running_loop()
        return event

    def unregister(self, event: asyncio.Event) -> None:
        with self._lock:
            self._waiters.pop(event, None)

    async def wait(self, event: asyncio.Event, timeout: float) -> None:
        """Return when the event is set or the time is over."""
        timeout_handle = asyncio.get_running_loop().call_later(timeout, event.set)
        try:
            await event.wait()
        finally:
            timeout_handle.cancel()

    def wake_all(self) -> None:
        if not self._waiters:
            return
        current_loop = asyncio.get_running_loop()
        with self._lock:
            waiters, self._waiters = self._waiters, {}
        for event, loop in waiters.items():
            if loop is current_loop:
                event.set()
            else:
                # If the loop of a waiting consumer was closed, there is nobody to wake.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(event.set)
