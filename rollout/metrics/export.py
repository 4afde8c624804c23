"""One process while it exports: its loop's pulse, the queues it watches, and the server, from its start to its end."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext

import anyio
from anyio.abc import TaskGroup
from prometheus_client import disable_created_metrics
from prometheus_client.registry import CollectorRegistry

from rollout.config.sections import MetricsConfig
from rollout.metrics.loop_monitor import Pulse
from rollout.metrics.queues import QueueCollector, QueueWatch
from rollout.metrics.server import Announcement, Exporter, served
from transports import Queue


class Export:
    """What a process adds to its metrics while it gets going. `unready` says why it is not ready, or None."""

    def __init__(self, queues: QueueCollector, group: TaskGroup) -> None:
        self.unready: Callable[[], str | None] = lambda: "it is starting"
        self._queues = queues
        self._group = group

    def watch(self, environment: str, name: str, queue: Queue) -> QueueWatch:
        """Export the state of a queue from now on; it must stay open as long as this lasts."""
        watch = QueueWatch(queue)
        self._queues.add(environment, name, watch)
        self._group.start_soon(watch.watch)
        return watch


@asynccontextmanager
async def exporting(
    registry: CollectorRegistry,
    announcement: Announcement,
    config: MetricsConfig | None,
    *,
    pulse: Pulse,
    patience: float,
) -> AsyncIterator[Export]:
    """Export a registry; with no configuration, keep what it needs going without serving it.

    `patience` is for how many seconds the loop may stall before the process is not well.

    Raises:
        MetricsPortTaken: it cannot listen where the configuration says.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call] # they would double the page
    queues = QueueCollector()
    registry.register(queues)
    async with anyio.create_task_group() as group:
        group.start_soon(pulse.beat)
        export = Export(queues, group)
        exporter = Exporter(registry, lambda: pulse.ill(patience), lambda: export.unready())
        serving = (
            served(exporter, host=config.host, port=config.port, announcement=announcement)
            if config is not None and config.serve
            else nullcontext()
        )
        with serving:
            try:
                yield export
            finally:
                group.cancel_scope.cancel()
