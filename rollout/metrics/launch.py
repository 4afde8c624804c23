"""The metrics of a launch: its workers', summed; what its rollouts came to; and whether workers and queues are well.

How rollouts ended is read from the run's claims, which is where the summary has it from: it is exact whoever was
killed, and includes what earlier launches of the run have finished.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rollout.claims import Claims, Outcome
from rollout.metrics import catalogue
from rollout.metrics.summing import Tally, summed

_SHARE = 20
"""Reading claims takes at most one part of so many of the time, however many there are and however often one asks."""
_FROM_CLAIMS = {
    family.base
    for family in (
        catalogue.ROLLOUTS,
        catalogue.FINISHED_TURNS,
        catalogue.FINISHED_TOKENS,
        catalogue.FINISHED_IMAGES,
    )
}


@dataclass(frozen=True, slots=True)
class LaunchFigures:
    """One environment of a launch, as its supervisor sees it now."""

    environment: str
    expected: int | None
    workers: int
    ready: int
    deaths: int
    tallies: Sequence[Tally]


@dataclass(slots=True)
class Ended:
    """What the rollouts of one environment came to, read from the claims a little at a time."""

    claims: Claims
    status: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    tokens: int = 0
    images: int = 0
    _seen: set[str] = field(default_factory=set)
    _next_look: float = 0.0
    _looking: threading.Lock = field(default_factory=threading.Lock)

    def look(self) -> None:
        """Take in what is new. Several scrapes may ask at once."""
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
        self.turns += outcome.turns
        self.tokens += outcome.tokens
        self.images += outcome.images


class LaunchCollector(Collector):
    """Exports a launch."""

    def __init__(self, figures: Callable[[], Sequence[LaunchFigures]], claims: dict[str, Claims]) -> None:
        self._figures = figures
        self._ended = {environment: Ended(found) for environment, found in claims.items()}

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        for metric in summed(tally for found in figures for tally in found.tallies):
            if metric.name not in _FROM_CLAIMS:
                yield metric
        yield from self._outcomes()
        workers: dict[tuple[str, ...], float] = {(f.environment, "ready"): f.ready for f in figures}
        workers |= {(f.environment, "starting"): f.workers - f.ready for f in figures}
        yield catalogue.WORKERS.read(workers)
        yield catalogue.WORKER_DEATHS.read({(f.environment,): f.deaths for f in figures})
        yield catalogue.EXPECTED.read({(f.environment,): f.expected for f in figures if f.expected is not None})

    def _outcomes(self) -> Iterator[Metric]:
        for ended in self._ended.values():
            ended.look()
        every = self._ended.items()
        yield catalogue.ROLLOUTS.read({(name, s): n for name, ended in every for s, n in ended.status.items()})
        yield catalogue.FINISHED_TURNS.read({(name,): ended.turns for name, ended in every})
        yield catalogue.FINISHED_TOKENS.read({(name,): ended.tokens for name, ended in every})
        yield catalogue.FINISHED_IMAGES.read({(name,): ended.images for name, ended in every})
