"""Whether an event loop turns: how late it comes to a timer, and for how long it has not come at all.

The loop only says when it turned; whether it has stalled is told from any thread.
"""

import time
from collections.abc import Callable

import anyio

_EVERY = 0.25


class Pulse:
    """Of one event loop; `beat` runs on it, `stalled` may be read anywhere."""

    def __init__(self, late: Callable[[float], None] | None = None) -> None:
        self._late = late
        self._turned = time.monotonic()

    @property
    def stalled(self) -> float:
        """Seconds for which the loop has not turned."""
        return max(0.0, time.monotonic() - self._turned - _EVERY)

    def ill(self, patience: float) -> str | None:
        """What is wrong with a process whose loop has stalled for so many seconds."""
        stalled = self.stalled
        return f"the event loop has not turned for {stalled:.0f} s" if stalled > patience else None

    async def beat(self) -> None:
        """Take note of every turn, until cancelled."""
        while True:
            due = time.monotonic() + _EVERY
            await anyio.sleep(_EVERY)
            self._turned = time.monotonic()
            if self._late is not None:
                self._late(max(0.0, self._turned - due))
