"""The metrics of a launch: those of its workers, summed, how its rollouts ended, and the state of its workers.

How rollouts ended is read from the run's claims, like the summary of the run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rollout.metrics import catalogue
from rollout.metrics.totals import MetricTotals, sum_metrics
from rollout.rundir.outcomes import OutcomeTotals

_READ_FROM_CLAIMS = {
    family.base_name
    for family in (
        catalogue.ROLLOUTS,
        catalogue.FINISHED_TURNS,
        catalogue.FINISHED_TOKENS,
        catalogue.FINISHED_IMAGES,
    )
}


@dataclass(frozen=True, slots=True)
class EnvironmentStatus:
    """One environment of a launch, as its supervisor sees it now.

    Attributes:
        environment: the environment's name.
        expected_rollouts: how many rollouts it plays; None if others put its orders.
        workers: how many worker slots it has.
        ready_workers: how many of them have a worker that takes orders.
        deaths: how many of its workers died.
        metric_totals: the metrics of each slot.
    """

    environment: str
    expected_rollouts: int | None
    workers: int
    ready_workers: int
    deaths: int
    metric_totals: Sequence[MetricTotals]


class LaunchCollector(Collector):
    """Exports a launch."""

    def __init__(
        self, get_statuses: Callable[[], Sequence[EnvironmentStatus]], outcome_totals: Mapping[str, OutcomeTotals]
    ) -> None:
        self._get_statuses = get_statuses
        self._outcome_totals = outcome_totals

    def collect(self) -> Iterator[Metric]:
        statuses = self._get_statuses()
        for metric in sum_metrics(totals for status in statuses for totals in status.metric_totals):
            if metric.name not in _READ_FROM_CLAIMS:
                yield metric
        yield from self._outcome_metrics()
        workers: dict[tuple[str, ...], float] = {}
        for status in statuses:
            workers[status.environment, "ready"] = status.ready_workers
            workers[status.environment, "starting"] = status.workers - status.ready_workers
        yield catalogue.WORKERS.build_metric(workers)
        yield catalogue.WORKER_DEATHS.build_metric({(status.environment,): status.deaths for status in statuses})
        expected = ((status.environment, status.expected_rollouts) for status in statuses)
        yield catalogue.ROLLOUTS_EXPECTED.build_metric(
            {(name,): count for name, count in expected if count is not None}
        )

    def _outcome_metrics(self) -> Iterator[Metric]:
        for totals in self._outcome_totals.values():
            totals.refresh()
        totals_by_environment = self._outcome_totals.items()
        yield catalogue.ROLLOUTS.build_metric(
            {
                (name, status): count
                for name, totals in totals_by_environment
                for status, count in totals.status_counts.items()
            }
        )
        yield catalogue.FINISHED_TURNS.build_metric({(name,): totals.turns for name, totals in totals_by_environment})
        yield catalogue.FINISHED_TOKENS.build_metric({(name,): totals.tokens for name, totals in totals_by_environment})
        yield catalogue.FINISHED_IMAGES.build_metric({(name,): totals.images for name, totals in totals_by_environment})
