"""Exports how rollouts ended. Only one process of a run does this, so that no rollout is counted twice."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rollout.metrics import catalogue
from rollout.rundir.outcomes import OutcomeTotals


class OutcomeCollector(Collector):
    """Exports the totals of each environment. `get_totals` returns them by the environment's name."""

    def __init__(self, get_totals: Callable[[], Mapping[str, OutcomeTotals]]) -> None:
        self._get_totals = get_totals

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values; see `Collector.collect`."""
        totals_by_environment = self._get_totals().items()
        yield catalogue.ROLLOUTS.build_metric(
            {
                (name, status): count
                for name, totals in totals_by_environment
                for status, count in dict(totals.status_counts).items()
            }
        )
        yield catalogue.FINISHED_TURNS.build_metric({(name,): totals.turns for name, totals in totals_by_environment})
        yield catalogue.FINISHED_TOKENS.build_metric({(name,): totals.tokens for name, totals in totals_by_environment})
        yield catalogue.FINISHED_IMAGES.build_metric({(name,): totals.images for name, totals in totals_by_environment})
        yield catalogue.RECORD_BYTES.build_metric(
            {(name,): totals.queue_bytes for name, totals in totals_by_environment}
        )
