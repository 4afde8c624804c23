"""Starts everything that a process needs to export metrics: the loop monitor, the queue monitors and the server."""

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
    """Represents the export of a running process.

    The process sets `not_ready_reason` to a function that returns why the process is not ready, or None if it is ready.
    """

    task_group: TaskGroup

    def __init__(self, queues: QueueCollector) -> None:
        self.not_ready_reason: Callable[[], str | None] = lambda: "it is starting"
        self._queues = queues

    def watch_queue(self, environment: str, queue_name: str, queue: Queue) -> QueueMonitor:
        """Start to export the state of a queue; return its monitor. The queue must stay open until the export ends."""
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
    """Measure the event loop and the queues, and serve the metrics if the configuration says so; yield the export.

    Args:
        registry: the metrics of the process.
        target_file: the file that says where the metrics are served.
        config: where to serve the metrics; None: do not serve them.
        loop_monitor: the monitor of the process's event loop.
        stall_timeout: the process is unhealthy if the event loop has not run for more seconds than this.

    Raises:
        MetricsPortTaken: the server cannot listen at the configured address.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call] # `_created` metrics would double each scrape's size
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
