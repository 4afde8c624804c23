"""Measures how long the stages of a turn take."""

import time


class StageTimer:
    """Measures the seconds of each stage of a turn."""

    def __init__(self) -> None:
        self.stage_seconds: dict[str, float] = {}
        self._last_mark = time.perf_counter()

    def mark_stage(self, stage: str) -> None:
        """Record the time since the previous stage as the time of this stage."""
        now = time.perf_counter()
        self.stage_seconds[stage], self._last_mark = round(now - self._last_mark, 6), now
