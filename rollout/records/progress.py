"""The trainer's progress, which the trainer sends to the launch over a queue.

    async with ProgressPublisher("file:///data/run7/control/color_codeword") as publisher:
        await publisher.publish(TrainerProgress(version=3, consumed=192, discarded=2))

This queue can have the same URL schemes as the trajectories queue, so the launch can run on another machine. The newest
record is not acked, so the next launch receives it first.
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
    """The progress of the trainer. All counts begin with the start of the run.

    Attributes:
        version: the number of the policy version that the engines have now.
        consumed: the number of rollouts of this environment that training steps used.
        discarded: the number of rollouts that the trainer received but does not train on, because they failed, were
            abandoned, or are too stale.
        pushed: whether the trainer itself loaded these weights into the engines. If so, an engine with another version
            missed the update.
    """

    version: int = 0
    consumed: int = 0
    discarded: int = 0
    pushed: bool = False


class ProgressPublisher:
    """Sends the trainer's progress. Publish once at the start, so that the launch knows a restarted trainer's state."""

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
    """Receives the trainer's progress in a launch.

    Attributes:
        latest: the newest progress that was received; zeros before the first record.
    """

    def __init__(self, queue: Queue) -> None:
        self.latest = TrainerProgress()
        self._queue = queue
        self._unacked_delivery: Delivery | None = None

    async def poll(self, *, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the next record, and return whether a valid one arrived."""
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
            await delivery.reject(f"the record is not a valid progress record of a trainer: {error!r}")
            return False
        previous_delivery, self._unacked_delivery = self._unacked_delivery, delivery
        if previous_delivery is not None:
            try:
                await previous_delivery.ack()
            except StaleLease:
                log.warning("another launch reads the progress of the same trainer", queue=self._queue.url)
            except QueueError as error:
                log.warning(
                    "an old progress record of the trainer could not be acked and stays on the queue", error=str(error)
                )
        return True


def _whole_number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not an integer of 0 or more")
    return value
