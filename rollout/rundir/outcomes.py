"""What the rollouts of one environment came to, read from a run's claims a little at a time.

It is exact whoever was killed, includes what earlier launches of the run have finished, and counts workers that others
have started on other machines.
"""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from rollout.rundir.claims import Claims, Outcome

_PAUSE_FACTOR = 20
"""Reading claims takes at most one part of so many of the time, however many there are and however often one asks."""


@dataclass(slots=True)
class OutcomeTotals:
    """As of the last look."""

    claims: Claims
    status_counts: Counter[str] = field(default_factory=Counter)
    reward_sum: float = 0.0
    reward_count: int = 0
    turns: int = 0
    tokens: int = 0
    images: int = 0
    _seen_names: set[str] = field(default_factory=set)
    _next_refresh: float = 0.0
    _refresh_lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rollout_count(self) -> int:
        return self.status_counts.total()

    def refresh(self) -> None:
        """Take in what is new. Several threads may ask at once."""
        with self._refresh_lock:
            started = time.monotonic()
            if started < self._next_refresh:
                return
            for outcome in self.claims.new_outcomes(self._seen_names):
                self._add(outcome)
            now = time.monotonic()
            self._next_refresh = now + _PAUSE_FACTOR * (now - started)

    def _add(self, outcome: Outcome) -> None:
        self.status_counts[outcome.status] += 1
        if outcome.reward is not None:
            self.reward_sum += outcome.reward
            self.reward_count += 1
        self.turns += outcome.turns
        self.tokens += outcome.tokens
        self.images += outcome.images
