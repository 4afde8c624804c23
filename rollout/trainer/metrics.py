"""The reader's side of the metrics, for the trainer's own Prometheus registry or on a port of its own.

    async with open_reader(url) as reader, serving_metrics(reader, port=9401):
        ...

A trainer that has a registry already registers `ReaderCollector(reader)` there. See docs/metrics.md for the names.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from rollout.metrics import catalogue
from rollout.metrics.loop_monitor import Pulse
from rollout.metrics.queues import QueueWatch
from rollout.metrics.server import Exporter, served
from rollout.trainer.reading.reader import TrajectoryReader

_STALLED = 3600.0
"""Seconds without a turn of the trainer's loop after which it is not well: a training step may block it for long."""


class ReaderCollector(Collector):
    """Exports what a reader did, and, with a watch, the state of its queue."""

    def __init__(self, reader: TrajectoryReader, watch: QueueWatch | None = None) -> None:
        self._reader = reader
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        stats = self._reader.stats()
        for family, value in (
            (catalogue.TRAINER_TRAJECTORIES, stats.trajectories),
            (catalogue.TRAINER_GROUPS, stats.groups),
            (catalogue.TRAINER_PARTIAL, stats.partial_groups),
            (catalogue.TRAINER_RECORDS, stats.records),
            (catalogue.TRAINER_BYTES, stats.bytes),
            (catalogue.TRAINER_REDELIVERED, stats.redelivered),
            (catalogue.TRAINER_DROPPED, stats.dropped),
            (catalogue.TRAINER_REJECTED, stats.rejected),
            (catalogue.TRAINER_STALE, stats.stale),
            (catalogue.TRAINER_UNFINISHED, stats.unfinished),
            (catalogue.TRAINER_WAITING, stats.waiting),
            (catalogue.TRAINER_UNACKED, stats.unacked),
        ):
            yield family.read({(): value})
        yield catalogue.TRAINER_HELD.read({("memory",): stats.bytes_in_memory, ("disk",): stats.bytes_on_disk})
        if self._reader.version is not None:
            yield catalogue.TRAINER_VERSION.read({(): self._reader.version})
        yield catalogue.TRAINER_STALENESS.tally(stats.staleness)
        if self._watch is not None:
            queue = self._watch.latest
            yield catalogue.TRAINER_QUEUE_RECORDS.read({(): queue.backlog_records})
            yield catalogue.TRAINER_QUEUE_BYTES.read({(): queue.backlog_bytes})
            yield catalogue.TRAINER_QUEUE_AGE.read({(): queue.oldest_age})
            yield catalogue.TRAINER_QUEUE_SILENCE.read({(): self._watch.silence})


@asynccontextmanager
async def serving_metrics(reader: TrajectoryReader, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve /metrics, /healthz and /readyz for a reader; gives the server's root. Port 0 takes a free one.

    Raises:
        MetricsPortTaken: it cannot listen there.
    """
    registry, pulse, watch = CollectorRegistry(), Pulse(), QueueWatch(reader.queue)
    registry.register(ReaderCollector(reader, watch))
    exporter = Exporter(registry, lambda: pulse.ill(_STALLED), lambda: None)
    async with anyio.create_task_group() as group:
        group.start_soon(pulse.beat)
        group.start_soon(watch.watch)
        with served(exporter, host=host, port=port) as url:
            yield url
        group.cancel_scope.cancel()
