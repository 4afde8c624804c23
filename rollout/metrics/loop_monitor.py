"""Whether an event loop turns: how late it comes to a timer, and for how long it has not come at all.

The loop only says when it turned; whether it has stalled is told from any thread.
"""

import time
from collections.abc import Callable

import anyio

_CHECK_INTERVAL = 0.25


class LoopMonitor:
    """Of one event loop; `run` runs on it, `stalled_seconds` may be read anywhere."""

    def __init__(self, on_delay: Callable[[float], None] | None = None) -> None:
        self._on_delay = on_delay
        self._last_turn = time.monotonic()

    @property
    def stalled_seconds(self) -> float:
        """Seconds for which the loop has not turned."""
        return max(0.0, time.monotonic() - self._last_turn - _CHECK_INTERVAL)

    def problem(self, stall_timeout: float) -> str | None:
        """What is wrong with a process whose loop has stalled for so many seconds."""
        seconds = self.stalled_seconds
        return f"the event loop has not turned for {seconds:.0f} s" if seconds > stall_timeout else None

    async def run(self) -> None:
        """Take note of every turn, until cancelled."""
        while True:
            expected = time.monotonic() + _CHECK_INTERVAL
            await anyio.sleep(_CHECK_INTERVAL)
            self._last_turn = time.monotonic()
            if self._on_delay is not None:
                self._on_delay(max(0.0, self._last_turn - expected))
