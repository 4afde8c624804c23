"""A worker: leases orders, plays each as one rollout, and settles an order once its finished record is accepted.

One failed rollout never ends another one. Failures of the infrastructure (the engine is gone, the disk is full) are
counted: so many in a row end the worker with that error, before it burns every task.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import anyio
import structlog

from rollout.config import Config
from rollout.engine.errors import ContextExhausted, EngineError
from rollout.environments.base import Environment, Score
from rollout.images import ImageStoreError
from rollout.session import Policy, Session
from rollout.steps import RolloutFinished, RolloutStatus
from rollout.stream import RolloutId, RolloutStream
from rollout.tasks import RolloutOrder, TaskError, decode_order
from transports import Delivery, Queue, QueueError

log = structlog.get_logger()

_POLL = 0.2
_LAST_WORDS = 5.0
"""Seconds that a rollout which was told to stop has for its finished record."""


class ScoreError(Exception):
    """An environment returned something that is not a score."""


@dataclass(slots=True)
class WorkerCounters:
    """What a worker did so far."""

    in_flight: int = 0
    finished: int = 0
    status: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    images: int = 0
    queue_bytes: int = 0
    prompt_sources: Counter[str] = field(default_factory=Counter)

    def add(self, session: Session, stream: RolloutStream) -> None:
        """Count a rollout that has ended."""
        if stream.final is not None:
            self.finished += 1
            self.status[stream.final.status] += 1
        self.turns += session.turns_done
        self.images += session.images_seen
        self.queue_bytes += stream.bytes
        self.prompt_sources.update(session.prompt_sources)


class Worker:
    """Plays rollouts of one environment with one policy."""

    def __init__(self, config: Config, policy: Policy, run: str, tasks: Queue, trajectories: Queue) -> None:
        self.counters = WorkerCounters()
        self._config = config
        self._policy = policy
        self._run = run
        self._tasks = tasks
        self._trajectories = trajectories
        self._failures = 0
        self._config_digest = config.digest()
        geometry = policy.adapter.geometry
        self._layout = {"family": geometry.family, "fingerprint": geometry.fingerprint} if geometry else {}
        if geometry and geometry.vllm_modality:
            self._layout["vllm_modality"] = geometry.vllm_modality

    async def run(self) -> None:
        """Play until cancelled; rollouts in flight then end as abandoned.

        Raises:
            RolloutError, QueueError: the infrastructure failed too often in a row.
        """
        slots = anyio.Semaphore(self._config.worker.concurrency)
        async with anyio.create_task_group() as group:
            while True:
                await slots.acquire()
                await self._trajectories.admit()
                while (delivery := await self._tasks.receive(timeout=_POLL)) is None:
                    pass
                group.start_soon(self._settle, delivery, slots)

    async def _settle(self, delivery: Delivery, slots: anyio.Semaphore) -> None:
        try:
            order = decode_order(delivery.frames)
        except TaskError as error:
            log.error("order refused", tag=delivery.tag, error=str(error))
            await delivery.reject(str(error))
        else:
            await self._play(order)
            await delivery.ack()
        finally:
            slots.release()

    async def _play(self, order: RolloutOrder) -> None:
        """One attempt at a rollout, from its started to its finished record."""
        config = self._config
        name = config.environment.__name__
        identity = RolloutId(self._run, name, order.task.id, order.rollout, order.sample, order.group_size, attempt=1)
        stream = RolloutStream(self._trajectories, identity)
        session = Session(self._policy, stream)
        self.counters.in_flight += 1
        with structlog.contextvars.bound_contextvars(rollout=order.rollout, attempt=1):
            try:
                await stream.started(
                    order.task,
                    policy_version=config.policy.version,
                    config_digest=self._config_digest,
                    model=config.model.name,
                    pad_id=self._policy.adapter.pad_id,
                    assets=str(self._policy.images.directory),
                    layout=self._layout,
                )
                finished = await self._outcome(order, session, stream)
                log.info("rollout finished", status=finished.status, reward=finished.reward, turns=stream.steps)
            finally:
                self.counters.in_flight -= 1
                self.counters.add(session, stream)

    async def _outcome(self, order: RolloutOrder, session: Session, stream: RolloutStream) -> RolloutFinished:
        timeout = self._config.worker.rollout_timeout
        try:
            with anyio.fail_after(timeout):
                environment: Environment = self._config.environment(self._config.settings)
                score = _checked(await environment.run(order.task, session))
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True), anyio.move_on_after(_LAST_WORDS):
                await stream.finished(RolloutStatus.ABANDONED)
            raise
        except QueueError:
            raise  # without its queue a rollout cannot even say that it failed
        except ContextExhausted as error:
            self._failures = 0
            return await stream.finished(RolloutStatus.TRUNCATED, reward=0.0, error=_error(error))
        except TimeoutError:
            return await self._failed(TimeoutError(f"not done within {timeout:g} s (worker.rollout_timeout)"), stream)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an environment raises is its rollout's end
            return await self._failed(error, stream)
        self._failures = 0
        cut = session.last_finish_reason == "length"
        status = RolloutStatus.TRUNCATED if cut else RolloutStatus.OK
        return await stream.finished(status, reward=score.reward, metrics=score.metrics)

    async def _failed(self, error: BaseException, stream: RolloutStream) -> RolloutFinished:
        log.warning("rollout failed", exc_info=error)
        finished = await stream.finished(RolloutStatus.FAILED, error=_error(error))
        self._failures = self._failures + 1 if _infrastructure(error) else 0
        if self._failures >= self._config.worker.halt_after:
            raise error
        return finished


def _infrastructure(error: BaseException) -> bool:
    return isinstance(error, ImageStoreError) or (isinstance(error, EngineError) and error.infrastructure)


def _checked(score: object) -> Score:
    if not isinstance(score, Score):
        raise ScoreError(f"run() returned a {type(score).__name__}; expected a rollout.Score")
    if not isinstance(score.reward, int | float) or not math.isfinite(score.reward):
        raise ScoreError(f"the reward is {score.reward!r}; expected a finite number")
    return Score(float(score.reward), _numbers(score.metrics))


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ScoreError(f"metrics must map names to numbers: {error}") from None


def _error(error: BaseException) -> dict[str, str]:
    return {"type": type(error).__name__, "message": str(error)}
