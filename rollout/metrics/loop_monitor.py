"""Measures how late an event loop serves a timer, and for how long it has stalled.

The loop records when it turned. Any thread can read for how long it has stalled.
"""

import time
from collections.abc import Callable

import anyio

_CHECK_INTERVAL = 0.25


class LoopMonitor:
    """Monitors the event loop on which `run` runs; any thread may read `stalled_seconds`."""

    def __init__(self, on_delay: Callable[[float], None] | None = None) -> None:
        self._on_delay = on_delay
        self._last_turn = time.monotonic()

    @property
    def stalled_seconds(self) -> float:
        """The number of seconds for which the loop has not turned."""
        return max(0.0, time.monotonic() - self._last_turn - _CHECK_INTERVAL)

    def problem(self, stall_timeout: float) -> str | None:
        """Return a description if the loop has stalled for more than `stall_timeout` seconds, or else None."""
        seconds = self.stalled_seconds
        return f"the event loop has not turned for {seconds:.0f} s" if seconds > stall_timeout else None

    async def run(self) -> None:
        """Record the turns of the loop until this is cancelled."""
        while True:
            expected = time.monotonic() + _CHECK_INTERVAL
            await anyio.sleep(_CHECK_INTERVAL)
            self._last_turn = time.monotonic()
            if self._on_delay is not None:
                self._on_delay(max(0.0, self._last_turn - expected))
