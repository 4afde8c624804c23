"""The trainer's progress, which the trainer sends to the launch over a queue.

    async with ProgressPublisher("file:///data/run7/control/color_codeword") as publisher:
        await publisher.publish(TrainerProgress(version=3, consumed=192, discarded=2))

A queue reaches other machines by the same URL schemes as the trajectories. The newest record is never acked, so that
the next launch begins with it.
"""

from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import structlog

from transports import Delivery, Queue, QueueError, StaleLease, open_queue
from transports.codec import decode, encode
from transports.errors import CodecError

log = structlog.get_logger()

_RECORD_KEY = "progress"


@dataclass(frozen=True, slots=True)
class TrainerProgress:
    """The trainer's state, counted from the beginning of the run.

    Attributes:
        version: the number of the version of the weights that the engines have now.
        consumed: how many rollouts of this environment were used in a training step.
        discarded: how many rollouts the trainer received and does not train on: failed, abandoned or too stale.
        pushed: whether the trainer itself loaded these weights into the engines; then an engine with another version
            missed the update.
    """

    version: int = 0
    consumed: int = 0
    discarded: int = 0
    pushed: bool = False


class ProgressPublisher:
    """Sends the trainer's progress. Publish at the start, so that the launch knows the state of a restarted trainer."""

    def __init__(self, url: str) -> None:
        self._queue = open_queue(url)

    async def publish(self, progress: TrainerProgress) -> None:
        """Send the progress. Raises QueueError if the queue does not accept it."""
        await self._queue.put(encode(asdict(progress)), key=_RECORD_KEY, tag=str(progress.version))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._queue.aclose()


class ProgressFollower:
    """Receives the trainer's progress in a launch; `latest` is the newest that it received."""

    def __init__(self, queue: Queue) -> None:
        self.latest = TrainerProgress()
        self._queue = queue
        self._unacked_delivery: Delivery | None = None

    async def poll(self, *, timeout: float) -> bool:
        """Receive the next record, and return whether there was a valid one."""
        delivery = await self._queue.receive(timeout=timeout)
        if delivery is None:
            return False
        try:
            fields: Any = decode(delivery.frames)
            version, consumed, discarded = (
                _whole_number(fields[name]) for name in ("version", "consumed", "discarded")
            )
            self.latest = TrainerProgress(version, consumed, discarded, pushed=fields.get("pushed", False) is True)
        except (CodecError, KeyError, TypeError, ValueError, AttributeError) as error:
            await delivery.reject(f"this is not a trainer's progress: {error!r}")
            return False
        previous_delivery, self._unacked_delivery = self._unacked_delivery, delivery
        if previous_delivery is not None:
            try:
                await previous_delivery.ack()
            except StaleLease:
                log.warning("another launch reads the trainer's progress", queue=self._queue.url)
            except QueueError as error:
                log.warning("an old progress record of the trainer stays on the queue", error=str(error))
        return True


def _whole_number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number")
    return value
