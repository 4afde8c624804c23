"""One run of a transport benchmark, and its measurement."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trial:
    """One run: the queue, and the records that pass through it.

    Attributes:
        where: the URL, address or directory of the queue.
        nbytes: the size of one record.
        count: the number of records.
    """

    where: str
    nbytes: int
    count: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a process measured.

    Attributes:
        rate: records per second.
        cpu: microseconds of this process's CPU time for each record.
    """

    rate: float
    cpu: float


class Meter:
    """Measures from the first record on, so that imports and the like do not count."""

    def __init__(self) -> None:
        self._records = -1
        self._started = self._cpu_before = self._last = 0.0

    def count(self) -> None:
        """Count a record."""
        self._records += 1
        if self._records == 0:
            self._started = time.perf_counter()
            self._cpu_before = time.process_time()

    def stop(self) -> None:
        """Record the time of the last record. What the process does afterwards counts as CPU time only."""
        self._last = time.perf_counter()

    def outcome(self) -> Outcome:
        """Return the rate until `stop`, and the CPU time until now."""
        cpu = time.process_time() - self._cpu_before
        return Outcome(self._records / (self._last - self._started), cpu / self._records * 1e6)
