"""The metrics of a launch: its workers', summed; what its rollouts came to; and whether workers and queues are well.

How rollouts ended is read from the run's claims, which is where the summary has it from.
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
    """One environment of a launch, as its supervisor sees it now."""

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
        workers: dict[tuple[str, ...], float] = {(f.environment, "ready"): f.ready_workers for f in statuses}
        workers |= {(f.environment, "starting"): f.workers - f.ready_workers for f in statuses}
        yield catalogue.WORKERS.build_metric(workers)
        yield catalogue.WORKER_DEATHS.build_metric({(f.environment,): f.deaths for f in statuses})
        yield catalogue.ROLLOUTS_EXPECTED.build_metric(
            {(f.environment,): f.expected_rollouts for f in statuses if f.expected_rollouts is not None}
        )

    def _outcome_metrics(self) -> Iterator[Metric]:
        for totals in self._outcome_totals.values():
            totals.refresh()
        totals_by_environment = self._outcome_totals.items()
        yield catalogue.ROLLOUTS.build_metric(
            {
                (name, status): count
                for name, ended in totals_by_environment
                for status, count in ended.status_counts.items()
            }
        )
        yield catalogue.FINISHED_TURNS.build_metric({(name,): ended.turns for name, ended in totals_by_environment})
        yield catalogue.FINISHED_TOKENS.build_metric({(name,): ended.tokens for name, ended in totals_by_environment})
        yield catalogue.FINISHED_IMAGES.build_metric({(name,): ended.images for name, ended in totals_by_environment})
