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


class Rate:
    """Records per second from the first record to the last ack."""

    def __init__(self) -> None:
        self._started = 0.0
        self._records = -1

    def ack(self) -> None:
        self._records += 1
        if self._records == 0:
            self._started = time.perf_counter()

    def value(self) -> float:
        return self._records / (time.perf_counter() - self._started)
