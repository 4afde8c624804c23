"""How the rollouts of one environment ended, read from a run's claims a little at a time.

The totals stay exact when processes are killed. They include what earlier launches of the run finished, and what
workers finished that others started on other machines.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rollout.rundir.claims import Claims, Outcome

_PAUSE_FACTOR = 20
"""Reading claims takes at most this fraction of the time, 1 / _PAUSE_FACTOR, however many claims there are."""


def mean_by_name(rollouts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric or named reward, over the rollouts that have it."""
    values: dict[str, list[float]] = {}
    for numbers in rollouts:
        for name, value in numbers.items():
            values.setdefault(name, []).append(value)
    return {name: math.fsum(found) / len(found) for name, found in sorted(values.items())}


@dataclass(slots=True)
class OutcomeTotals:
    """The totals as of the last `refresh`.

    Attributes:
        claims: the claims that are read.
        status_counts: how many rollouts ended with each status.
        reward_sum: the sum of the rewards.
        reward_count: how many rollouts have a reward.
        turns: the turns of the rollouts that ended.
        tokens: the tokens that the policy sampled in them.
        images: the different images in them, counted for each rollout.
    """

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

    def refresh(self, *, at_once: bool = False) -> None:
        """Add the rollouts that ended since the last call, unless that call was a moment ago and `at_once` is false.

        Several threads may call it at once.
        """
        with self._refresh_lock:
            started = time.monotonic()
            if started < self._next_refresh and not at_once:
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
