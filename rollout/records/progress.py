"""How far the trainer is: the trainer sends its progress to a launch, over a queue like any other.

    async with ProgressPublisher("file:///data/run7/control/color_codeword") as publisher:
        await publisher.publish(TrainerProgress(version=3, consumed=192, discarded=2))

It is a queue, because a queue reaches other machines by the same URL schemes as the records do. The newest record is
never acked, so that a launch that starts again begins with it.
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
        version: the version of the weights that the engines have now.
        consumed: how many rollouts of this environment went into a training step.
        discarded: how many the trainer received and will not train on: failed, abandoned or too stale.
        pushed: whether the trainer loaded these weights into the engines; an engine with another version missed them.
    """

    version: int = 0
    consumed: int = 0
    discarded: int = 0
    pushed: bool = False


class ProgressPublisher:
    """The trainer's side. Publish once at the start too, so that the state of a restarted trainer is known at once."""

    def __init__(self, url: str) -> None:
        self._queue = open_queue(url)

    async def publish(self, progress: TrainerProgress) -> None:
        await self._queue.put(encode(asdict(progress)), key=_RECORD_KEY, tag=str(progress.version))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._queue.aclose()


class ProgressFollower:
    """The launch's side: `latest` is what was published last."""

    def __init__(self, queue: Queue) -> None:
        self.latest = TrainerProgress()
        self._queue = queue
        self._unacked_delivery: Delivery | None = None

    async def poll(self, *, timeout: float) -> bool:
        """Read the next record, and return whether there was a valid one."""
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
            await delivery.reject(f"this does not tell a trainer's progress: {error!r}")
            return False
        previous_delivery, self._unacked_delivery = self._unacked_delivery, delivery
        if previous_delivery is not None:
            try:
                await previous_delivery.ack()
            except StaleLease:
                log.warning("another orchestrator follows the trainer's progress", queue=self._queue.url)
            except QueueError as error:
                log.warning("an earlier progress of the trainer stays on the queue", error=str(error))
        return True


def _whole_number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number")
    return value
