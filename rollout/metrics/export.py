"""Measures and exports the metrics of a process: the loop monitor, the watched queues and the server."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext

import anyio
from anyio.abc import TaskGroup
from prometheus_client import disable_created_metrics
from prometheus_client.registry import CollectorRegistry

from rollout.config.sections import MetricsConfig
from rollout.metrics.loop_monitor import LoopMonitor
from rollout.metrics.queues import QueueCollector, QueueMonitor
from rollout.metrics.server import ProcessStatus, ScrapeTargetFile, serve_metrics
from transports import Queue


class MetricsExport:
    """The export of a running process. It sets `not_ready_reason`, which returns why it is not ready, or None."""

    task_group: TaskGroup

    def __init__(self, queues: QueueCollector) -> None:
        self.not_ready_reason: Callable[[], str | None] = lambda: "it is starting"
        self._queues = queues

    def watch_queue(self, environment: str, queue_name: str, queue: Queue) -> QueueMonitor:
        """Start to export the state of a queue, which must stay open until the export ends."""
        monitor = QueueMonitor(queue)
        self._queues.add(environment, queue_name, monitor)
        self.task_group.start_soon(monitor.run)
        return monitor


@asynccontextmanager
async def export_metrics(
    registry: CollectorRegistry,
    target_file: ScrapeTargetFile,
    config: MetricsConfig | None,
    *,
    loop_monitor: LoopMonitor,
    stall_timeout: float,
) -> AsyncIterator[MetricsExport]:
    """Measure everything, and serve the registry if the configuration says so.

    Args:
        registry: the metrics of the process.
        target_file: the file that says where the metrics are served.
        config: where to serve them; None: they are not served.
        loop_monitor: the monitor of the process's event loop.
        stall_timeout: seconds without a turn of the event loop after which the process is unhealthy.

    Raises:
        MetricsPortTaken: the server cannot listen at the configured address.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call] # they would double the size of each scrape
    queues = QueueCollector()
    export = MetricsExport(queues)
    status = ProcessStatus(registry, lambda: loop_monitor.problem(stall_timeout), lambda: export.not_ready_reason())
    server = (
        serve_metrics(status, host=config.host, port=config.port, target_file=target_file)
        if config is not None and config.serve
        else nullcontext()
    )
    with server:
        registry.register(queues)
        async with anyio.create_task_group() as export.task_group:
            export.task_group.start_soon(loop_monitor.run)
            try:
                yield export
            finally:
                export.task_group.cancel_scope.cancel()
