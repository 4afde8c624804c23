"""What the rollouts of one environment came to, read from a run's claims a little at a time.

It is exact whoever was killed, includes what earlier launches of the run have finished, and counts workers that others
have started on other machines.
"""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from rollout.rundir.claims import Claims, Outcome

_SHARE = 20
"""Reading claims takes at most one part of so many of the time, however many there are and however often one asks."""


@dataclass(slots=True)
class Ended:
    """As of the last look."""

    claims: Claims
    status: Counter[str] = field(default_factory=Counter)
    reward: float = 0.0
    rewards: int = 0
    turns: int = 0
    tokens: int = 0
    images: int = 0
    _seen: set[str] = field(default_factory=set)
    _next_look: float = 0.0
    _looking: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rollouts(self) -> int:
        return self.status.total()

    def look(self) -> None:
        """Take in what is new. Several threads may ask at once."""
        with self._looking:
            began = time.monotonic()
            if began < self._next_look:
                return
            for outcome in self.claims.unseen(self._seen):
                self._add(outcome)
            now = time.monotonic()
            self._next_look = now + _SHARE * (now - began)

    def _add(self, outcome: Outcome) -> None:
        self.status[outcome.status] += 1
        if outcome.reward is not None:
            self.reward += outcome.reward
            self.rewards += 1
        self.turns += outcome.turns
        self.tokens += outcome.tokens
        self.images += outcome.images
