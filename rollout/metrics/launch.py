"""The metrics of a launch: its workers', summed; what its rollouts came to; and whether workers and queues are well.

How rollouts ended is read from the run's claims, which is where the summary has it from.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rollout.metrics import catalogue
from rollout.metrics.totals import Tally, summed
from rollout.rundir.outcomes import Ended

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


class LaunchCollector(Collector):
    """Exports a launch."""

    def __init__(self, figures: Callable[[], Sequence[LaunchFigures]], ended: Mapping[str, Ended]) -> None:
        self._figures = figures
        self._ended = ended

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
