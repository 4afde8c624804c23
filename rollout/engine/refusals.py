"""Keeps what paused engines answered to one request, and says when to ask again and how the wait failed.

vLLM 0.33 refuses new requests while it is paused with `wait` or `abort`. Older versions and our engines let them wait.
"""

import random
import time

from rollout.engine.errors import EnginePaused
from rollout.engine.routing import exponential_pause

_FIRST_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.25, 2.0


class PauseRefusals:
    """The refusals of one request by engines that are paused for new weights. It is false if there were none."""

    def __init__(self) -> None:
        self._wait_count = 0
        self._first_at = self._last_at = 0.0
        self._last_url: str | None = None

    def __bool__(self) -> bool:
        return self._last_url is not None

    def record(self, url: str) -> None:
        """Record that the engine at `url` refused the request now."""
        self._last_at = time.monotonic()
        if self._last_url is None:
            self._first_at = self._last_at
        self._last_url = url

    def next_wait(self) -> float:
        """Return for how many seconds to wait before an engine is asked again; this grows with each call."""
        self._wait_count += 1
        return jittered_pause(_FIRST_WAIT_SECONDS, _MAX_WAIT_SECONDS, doublings=self._wait_count - 1)

    def timeout_error(self, request_id: str, timeout: float) -> EnginePaused:
        """Return the error of a request that no engine answered within `timeout` seconds."""
        return EnginePaused(
            f"{request_id}: no answer within {timeout:g} s (engine.timeout). For at least "
            f"{self._last_at - self._first_at:.1f} s, {self._last_url} refused the request, because it was paused for "
            "new weights. If updates take that long, raise engine.timeout. If no trainer is updating the engine, run "
            "`rollout policy push CONFIG --run RUN_DIR`."
        )


def jittered_pause(first: float, longest: float, *, doublings: int) -> float:
    """Return the pause of `exponential_pause`, shortened by up to half at random."""
    return exponential_pause(first, longest, doublings=doublings) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
