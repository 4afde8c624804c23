"""Wakes the waiting consumers of this process, on any thread and event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Wakeups:
    """The consumers that wait for a change of a queue.

    A consumer may be woken without a change, so it must look at the queue again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def register(self) -> asyncio.Event:
        """Return an event that the next `wake_all` sets. To miss no change, register before you look at the queue."""
        event = asyncio.Event()
        with self._lock:
            self._waiters[event] = asyncio.get_running_loop()
        return event

    def unregister(self, event: asyncio.Event) -> None:
        """Remove an event that `register` returned."""
        with self._lock:
            self._waiters.pop(event, None)

    async def wait(self, event: asyncio.Event, timeout: float) -> None:
        """Return when the event is set, or after `timeout` seconds."""
        timeout_handle = asyncio.get_running_loop().call_later(timeout, event.set)
        try:
            await event.wait()
        finally:
            timeout_handle.cancel()

    def wake_all(self) -> None:
        """Set all registered events, each on its own event loop."""
        if not self._waiters:
            return
        current_loop = asyncio.get_running_loop()
        with self._lock:
            waiters, self._waiters = self._waiters, {}
        for event, loop in waiters.items():
            if loop is current_loop:
                event.set()
            else:
                # The event loop of a consumer may be closed already.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(event.set)
