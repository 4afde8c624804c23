"""One run of a transport benchmark: what is moved, and how fast it was."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trial:
    """Where the queue is, and what is moved through it.

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
    """Records per second, and microseconds of this process's CPU time per record."""

    rate: float
    cpu: float


class Meter:
    """Counts from the first record on. What a process does earlier, such as imports, is no cost of a record."""

    def __init__(self) -> None:
        self._records = -1
        self._started = self._cpu_before = self._last = 0.0

    def count(self) -> None:
        self._records += 1
        if self._records == 0:
            self._started = time.perf_counter()
            self._cpu_before = time.process_time()

    def stop(self) -> None:
        """Note the time of the last record. What the process does afterwards costs CPU time, but not rate."""
        self._last = time.perf_counter()

    def outcome(self) -> Outcome:
        cpu = time.process_time() - self._cpu_before
        return Outcome(self._records / (self._last - self._started), cpu / self._records * 1e6)
