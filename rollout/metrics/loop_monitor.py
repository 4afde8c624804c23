"""Measures how late an event loop runs its timers, and for how long the event loop has been blocked."""

import time
from collections.abc import Callable

import anyio

_CHECK_INTERVAL = 0.25


class LoopMonitor:
    """Monitors the event loop that runs the method `run`. Any thread may read `stalled_seconds`."""

    def __init__(self, on_delay: Callable[[float], None] | None = None) -> None:
        self._on_delay = on_delay
        self._last_turn = time.monotonic()

    @property
    def stalled_seconds(self) -> float:
        """The number of seconds for which the event loop has not run."""
        return max(0.0, time.monotonic() - self._last_turn - _CHECK_INTERVAL)

    def problem(self, stall_timeout: float) -> str | None:
        """Return a description if the event loop has not run for more than `stall_timeout` seconds; otherwise None."""
        seconds = self.stalled_seconds
        return f"the event loop has not run for {seconds:.0f} s" if seconds > stall_timeout else None

    async def run(self) -> None:
        """Set a timer again and again, and record when the event loop runs it. It ends only when it is cancelled."""
        while True:
            expected = time.monotonic() + _CHECK_INTERVAL
            await anyio.sleep(_CHECK_INTERVAL)
            self._last_turn = time.monotonic()
            if self._on_delay is not None:
                self._on_delay(max(0.0, self._last_turn - expected))
