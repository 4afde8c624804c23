"""Exports the state of a launch's workers, as the supervisor knows it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rollout.metrics import catalogue


@dataclass(frozen=True, slots=True)
class EnvironmentStatus:
    """The state of one environment of a launch, as the supervisor knows it.

    Attributes:
        environment: the name of the environment.
        expected_rollouts: the number of rollouts to play; None if another program sends the orders.
        workers: the number of worker slots.
        ready_workers: the number of slots with a worker that takes orders.
        deaths: the number of workers that died.
    """

    environment: str
    expected_rollouts: int | None
    workers: int
    ready_workers: int
    deaths: int


class LaunchCollector(Collector):
    """Exports the state of a launch's workers, and the number of rollouts that the launch plays."""

    def __init__(self, get_statuses: Callable[[], Sequence[EnvironmentStatus]]) -> None:
        self._get_statuses = get_statuses

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values; see `Collector.collect`."""
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
