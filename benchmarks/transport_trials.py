"""One run of a transport benchmark: what is moved, and how fast it was."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trial:
    """Where the queue lives, and what is moved through it."""

    where: str
    nbytes: int
    count: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Records per second, and microseconds of this process's processor time for each."""

    rate: float
    cpu: float


class Meter:
    """Counts from the first record on: what a process does before, as importing its modules, is no cost of a record."""

    def __init__(self) -> None:
        self._records = -1
        self._started = self._cpu_before = self._last = 0.0

    def count(self) -> None:
        self._records += 1
        if self._records == 0:
            self._started = time.perf_counter()
            self._cpu_before = time.process_time()

    def stop(self) -> None:
        """That was the last record; what its process still does for them costs processor time, and no rate."""
        self._last = time.perf_counter()

    def outcome(self) -> Outcome:
        cpu = time.process_time() - self._cpu_before
        return Outcome(self._records / (self._last - self._started), cpu / self._records * 1e6)
