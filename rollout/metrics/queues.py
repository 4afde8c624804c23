"""How full queues are, asked for once a second, and for how long one of them has not answered."""

import time
from collections.abc import Iterator

import anyio
import structlog
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rollout.metrics import catalogue
from transports import Queue, QueueClosed, QueueError
from transports.base import QueueStats

log = structlog.get_logger()

_LOOK = 1.0
_PATIENCE = 10.0
_NOTHING = QueueStats(0, 0, 0.0, 0, 0)


class QueueWatch:
    """The state of one queue as it was last told."""

    def __init__(self, queue: Queue) -> None:
        self.latest = _NOTHING
        self._queue = queue
        self._heard = time.monotonic()

    @property
    def silence(self) -> float:
        """Seconds since the queue last told its state."""
        return max(0.0, time.monotonic() - self._heard - _LOOK)

    async def watch(self) -> None:
        """Ask, until it is closed. One that does not answer is no reason to end: whoever needs it will say so."""
        while True:
            try:
                with anyio.fail_after(_PATIENCE):
                    self.latest = await self._queue.stats()
                self._heard = time.monotonic()
            except QueueClosed:
                return
            except (QueueError, TimeoutError) as error:
                log.warning("the queue does not answer", queue=self._queue.url, error=str(error))
            await anyio.sleep(_LOOK)


class QueueCollector(Collector):
    """Exports watches under the names of an environment and of what the queue is for."""

    def __init__(self) -> None:
        self._watches: dict[tuple[str, str], QueueWatch] = {}

    def add(self, environment: str, queue: str, watch: QueueWatch) -> None:
        self._watches[environment, queue] = watch

    def collect(self) -> Iterator[Metric]:
        told = {labels: watch.latest for labels, watch in self._watches.items()}
        yield catalogue.QUEUE_RECORDS.read({labels: s.backlog_records for labels, s in told.items()})
        yield catalogue.QUEUE_BYTES.read({labels: s.backlog_bytes for labels, s in told.items()})
        yield catalogue.QUEUE_AGE.read({labels: s.oldest_age for labels, s in told.items()})
        yield catalogue.QUEUE_REDELIVERIES.read({labels: s.redeliveries for labels, s in told.items()})
        yield catalogue.QUEUE_DEAD.read({labels: s.dead_letters for labels, s in told.items()})
        yield catalogue.QUEUE_SILENCE.read({labels: watch.silence for labels, watch in self._watches.items()})
