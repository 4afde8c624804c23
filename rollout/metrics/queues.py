"""Measures every second how full each queue is, and for how long it has not answered."""

import time
from collections.abc import Iterator

import anyio
import structlog
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rollout.metrics import catalogue
from transports import Queue, QueueClosed, QueueError
from transports.base import QueueStats
from transports.urls import QueueOptions

log = structlog.get_logger()

_POLL_INTERVAL = 1.0
_STATS_TIMEOUT = 10.0
_EMPTY_STATS = QueueStats(0, 0, 0.0, 0, 0)


class QueueMonitor:
    """Asks a queue for its state every second. `latest_stats` is the last state that the queue reported."""

    def __init__(self, queue: Queue) -> None:
        self.latest_stats = _EMPTY_STATS
        self._queue = queue
        self._last_answer = time.monotonic()

    @property
    def url(self) -> str:
        """The URL of the queue, without its password."""
        return self._queue.url

    @property
    def limits(self) -> QueueOptions:
        """The options of the queue: the partitions, the high water and the hard limit."""
        return self._queue.limits

    @property
    def silent_seconds(self) -> float:
        """The number of seconds for which the queue has not answered; 0 while it answers every second."""
        return max(0.0, time.monotonic() - self._last_answer - _POLL_INTERVAL)

    async def run(self) -> None:
        """Ask the queue for its state every second, until the queue is closed.

        This method only logs errors, because the code that uses the queue raises its own errors.
        """
        while True:
            try:
                with anyio.fail_after(_STATS_TIMEOUT):
                    self.latest_stats = await self._queue.stats()
                self._last_answer = time.monotonic()
            except QueueClosed:
                return
            except (QueueError, TimeoutError) as error:
                log.warning("the queue does not answer", queue=self._queue.url, error=str(error))
            await anyio.sleep(_POLL_INTERVAL)


class QueueCollector(Collector):
    """Exports the states of several queues; the labels are the environment and the name of the queue."""

    def __init__(self) -> None:
        self._monitors: dict[tuple[str, str], QueueMonitor] = {}

    def add(self, environment: str, queue_name: str, monitor: QueueMonitor) -> None:
        """Add a queue whose state is exported."""
        self._monitors[environment, queue_name] = monitor

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values; see `Collector.collect`."""
        stats_by_labels = {labels: monitor.latest_stats for labels, monitor in self._monitors.items()}
        yield catalogue.QUEUE_BACKLOG_RECORDS.build_metric(
            {labels: stats.backlog_records for labels, stats in stats_by_labels.items()}
        )
        yield catalogue.QUEUE_BACKLOG_BYTES.build_metric(
            {labels: s.backlog_bytes for labels, s in stats_by_labels.items()}
        )
        yield catalogue.QUEUE_OLDEST_AGE.build_metric({labels: s.oldest_age for labels, s in stats_by_labels.items()})
        yield catalogue.QUEUE_REDELIVERIES.build_metric(
            {labels: s.redeliveries for labels, s in stats_by_labels.items()}
        )
        yield catalogue.QUEUE_DEAD_LETTERS.build_metric(
            {labels: s.dead_letters for labels, s in stats_by_labels.items()}
        )
        yield catalogue.QUEUE_REFUSED_MESSAGES.build_metric(
            {labels: s.refused_messages for labels, s in stats_by_labels.items()}
        )
        yield catalogue.QUEUE_SILENCE.build_metric(
            {labels: monitor.silent_seconds for labels, monitor in self._monitors.items()}
        )
