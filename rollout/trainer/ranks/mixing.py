"""Chooses the queue of each next group, so that each environment has its share of the groups."""

import math
from collections.abc import Mapping

from rollout.errors import ConfigurationError


class QueueMix:
    """Chooses queues in proportion to their weights.

    Each group adds its weight to the credit of every queue. The queue with the highest credit gives the group, and pays
    the sum of all weights. So the number of groups of a queue stays close to its exact share at all times.

    Args:
        weights: the weight of each queue, by name.

    Raises:
        ConfigurationError: there is no queue, or a weight is not a positive number.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        if not weights:
            raise ConfigurationError("open_batches() got no queue. Pass a URL, or a mapping from URLs to weights.")
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigurationError(f"{name}: the weight is {weight!r}; expected a number above 0.")
        self._weights = dict(weights)
        self._credits = dict.fromkeys(weights, 0.0)
        self._paused: set[str] = set()

    @property
    def paused(self) -> frozenset[str]:
        """The names of the queues that give no groups now."""
        return frozenset(self._paused)

    @property
    def is_empty(self) -> bool:
        """Whether no queue gives groups now."""
        return len(self._paused) == len(self._weights)

    def next_queue(self) -> str:
        """Return the name of the queue that gives the next group. `count_group` makes the choice final."""
        return max(self._running, key=lambda name: self._credits[name] + self._weights[name])

    def count_group(self, name: str) -> None:
        """Remember that this queue has given a group."""
        running = self._running
        for queue, weight in running.items():
            self._credits[queue] += weight
        self._credits[name] -= sum(running.values())

    def pause(self, name: str) -> None:
        """Take no more groups from a queue; the other queues share its part and its credit."""
        self._paused.add(name)
        left = self._credits[name]
        self._credits[name] = 0.0
        # The sum of all credits stays 0. Otherwise, a queue that returns would get too few groups, or too many.
        running = self._running
        for queue, weight in running.items():
            self._credits[queue] += left * weight / sum(running.values())

    def resume(self, name: str) -> None:
        """Give a queue its part again."""
        self._paused.discard(name)

    @property
    def _running(self) -> dict[str, float]:
        return {name: weight for name, weight in self._weights.items() if name not in self._paused}

    def state(self) -> dict[str, float]:
        """Return the credit of each queue."""
        return dict(self._credits)

    def load(self, credits_by_name: Mapping[str, float]) -> None:
        """Continue with the credits of an earlier mix. A queue without a saved credit starts with 0."""
        self._credits = {name: float(credits_by_name.get(name, 0.0)) for name in self._weights}
