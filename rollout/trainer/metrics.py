"""Exports the metrics of a reader, on a separate port or in the trainer's Prometheus registry.

    async with open_reader(url) as reader, serving_metrics(reader, port=9401):
        ...

A trainer that has its own registry registers `ReaderCollector(reader)` there. docs/metrics.md explains the metrics.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from rollout.metrics import catalogue
from rollout.metrics.loop_monitor import LoopMonitor
from rollout.metrics.queues import QueueMonitor
from rollout.metrics.server import ProcessStatus, serve_metrics
from rollout.trainer.reading.reader import TrajectoryReader

_STALL_TIMEOUT_SECONDS = 3600.0
"""If a training step blocks the event loop for more seconds than this, /healthz reports the trainer as unhealthy."""


class ReaderCollector(Collector):
    """Exports the counters of a reader and, if `queue_monitor` is given, the state of its queue."""

    def __init__(self, reader: TrajectoryReader, queue_monitor: QueueMonitor | None = None) -> None:
        self._reader = reader
        self._queue_monitor = queue_monitor

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics with their current values; Prometheus calls this at each scrape."""
        stats = self._reader.stats()
        for metric_spec, value in (
            (catalogue.TRAINER_TRAJECTORIES, stats.trajectories),
            (catalogue.TRAINER_GROUPS, stats.groups),
            (catalogue.TRAINER_PARTIAL_GROUPS, stats.partial_groups),
            (catalogue.TRAINER_RECORDS, stats.records),
            (catalogue.TRAINER_BYTES, stats.bytes),
            (catalogue.TRAINER_REDELIVERED_RECORDS, stats.redelivered),
            (catalogue.TRAINER_DROPPED_RECORDS, stats.dropped),
            (catalogue.TRAINER_REJECTED_RECORDS, stats.rejected),
            (catalogue.TRAINER_STALE_TRAJECTORIES, stats.stale),
            (catalogue.TRAINER_HELD_BACK_TRAJECTORIES, stats.held_back),
            (catalogue.TRAINER_UNFINISHED_ROLLOUTS, stats.unfinished),
            (catalogue.TRAINER_WAITING_TRAJECTORIES, stats.waiting),
            (catalogue.TRAINER_UNACKED_RECORDS, stats.unacked),
        ):
            yield metric_spec.build_metric({(): value})
        yield catalogue.TRAINER_HELD_BYTES.build_metric(
            {("memory",): stats.bytes_in_memory, ("disk",): stats.bytes_on_disk}
        )
        if self._reader.version is not None:
            yield catalogue.TRAINER_POLICY_VERSION.build_metric({(): self._reader.version})
        yield catalogue.TRAINER_STALENESS.build_histogram(stats.staleness)
        if self._queue_monitor is not None:
            queue_stats = self._queue_monitor.latest_stats
            yield catalogue.TRAINER_QUEUE_BACKLOG_RECORDS.build_metric({(): queue_stats.backlog_records})
            yield catalogue.TRAINER_QUEUE_BACKLOG_BYTES.build_metric({(): queue_stats.backlog_bytes})
            yield catalogue.TRAINER_QUEUE_OLDEST_AGE.build_metric({(): queue_stats.oldest_age})
            yield catalogue.TRAINER_QUEUE_SILENCE.build_metric({(): self._queue_monitor.silent_seconds})


@asynccontextmanager
async def serving_metrics(reader: TrajectoryReader, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve /metrics, /healthz and /readyz for a reader, and yield the root URL. Port 0 means any free port.

    Raises:
        MetricsPortTaken: the port is in use, or the host is not an address of this machine.
    """
    registry, loop_monitor, queue_monitor = CollectorRegistry(), LoopMonitor(), QueueMonitor(reader.queue)
    registry.register(ReaderCollector(reader, queue_monitor))
    exporter = ProcessStatus(registry, lambda: loop_monitor.problem(_STALL_TIMEOUT_SECONDS), lambda: None)
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(loop_monitor.run)
        task_group.start_soon(queue_monitor.run)
        with serve_metrics(exporter, host=host, port=port) as url:
            yield url
        task_group.cancel_scope.cancel()
