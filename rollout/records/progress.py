"""How far the trainer is, told to whoever starts rollouts, over a queue like any other.

    async with ProgressPublisher("file:///data/run7/control/color_codeword") as progress:
        await progress.publish(Progress(version=3, consumed=192, discarded=2))

A queue, because it reaches other machines by the same URL schemes as the records do. The newest record is never acked:
an orchestrator that starts anew begins with it.
"""

from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import structlog

from transports import Delivery, Queue, StaleLease, open_queue
from transports.codec import decode, encode
from transports.errors import CodecError

log = structlog.get_logger()

_RECORD_KEY = "progress"


@dataclass(frozen=True, slots=True)
class TrainerProgress:
    """The trainer's state, counted from the beginning of the run.

    Attributes:
        version: of the weights that the engines have now.
        consumed: rollouts of this environment that have gone into a training step.
        discarded: those that the trainer received and will not train on: failed, abandoned, too stale.
        pushed: whether the engines call their weights by this version, so that one which does not has missed it.
    """

    version: int = 0
    consumed: int = 0
    discarded: int = 0
    pushed: bool = False


class ProgressPublisher:
    """The trainer's side. Publish once at the start too, so that a restarted trainer is believed at once."""

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
    """The orchestrator's side: `latest` is what was published last."""

    def __init__(self, queue: Queue) -> None:
        self.latest = TrainerProgress()
        self._queue = queue
        self._unacked_delivery: Delivery | None = None

    async def poll(self, *, timeout: float) -> bool:
        """Take in what is new; whether anything was."""
        delivery = await self._queue.receive(timeout=timeout)
        if delivery is None:
            return False
        try:
            fields: Any = decode(delivery.frames)
            version, consumed, discarded = (int(fields[name]) for name in ("version", "consumed", "discarded"))
            self.latest = TrainerProgress(version, consumed, discarded, pushed=bool(fields.get("pushed", False)))
        except (CodecError, KeyError, TypeError, ValueError, AttributeError) as error:
            await delivery.reject(f"this does not tell a trainer's progress: {error!r}")
            return False
        previous_delivery, self._unacked_delivery = self._unacked_delivery, delivery
        if previous_delivery is not None:
            try:
                await previous_delivery.ack()
            except StaleLease:
                log.warning("another orchestrator follows the trainer's progress", queue=self._queue.url)
        return True
