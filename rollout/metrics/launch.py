"""The workers of a launch, as its supervisor sees them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rollout.metrics import catalogue


@dataclass(frozen=True, slots=True)
class EnvironmentStatus:
    """One environment of a launch, as its supervisor sees it now.

    Attributes:
        environment: the environment's name.
        expected_rollouts: how many rollouts it plays; None if others put its orders.
        workers: how many worker slots it has.
        ready_workers: how many of them have a worker that takes orders.
        deaths: how many of its workers died.
    """

    environment: str
    expected_rollouts: int | None
    workers: int
    ready_workers: int
    deaths: int


class LaunchCollector(Collector):
    """Exports the workers of a launch, and how many rollouts it plays."""

    def __init__(self, get_statuses: Callable[[], Sequence[EnvironmentStatus]]) -> None:
        self._get_statuses = get_statuses

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        statuses = self._get_statuses()
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
