"""One attempt at a rollout, from its started to its one finished record, whatever the environment does."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import anyio
import structlog

from rollout.engine.errors import ContextExhausted
from rollout.environments.base import Environment, Score
from rollout.session import Policy, Session
from rollout.steps import RolloutFinished, RolloutStatus
from rollout.stream import RolloutId, RolloutStream
from rollout.tasks import RolloutOrder
from transports import Queue, QueueError

log = structlog.get_logger()

_LAST_WORDS = 5.0
"""Seconds that a rollout which was told to stop has for its finished record."""


class ScoreError(Exception):
    """An environment returned something that is not a score."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What every rollout of a run says about itself when it starts."""

    run: str
    environment: str
    model: str
    policy_version: str
    config_digest: str


class Attempt:
    """Plays one order with a fresh environment.

    After `play`, `error` is what the environment or the engine raised, if the rollout failed, and `stream.final` is the
    finished record, unless the queue itself failed.
    """

    def __init__(self, order: RolloutOrder, number: int, policy: Policy, facts: RunFacts, queue: Queue) -> None:
        task = order.task
        self.order = order
        self.policy = policy
        self.facts = facts
        self.stream = RolloutStream(
            queue,
            RolloutId(facts.run, facts.environment, task.id, order.rollout, order.sample, order.group_size, number),
        )
        self.session = Session(policy, self.stream)
        self.error: BaseException | None = None

    async def play(self, environment: Callable[[], Environment], *, timeout: float) -> RolloutFinished:
        """Play it. Raises only QueueError, and cancellation after the rollout was finished as abandoned."""
        with structlog.contextvars.bound_contextvars(rollout=self.order.rollout, attempt=self.stream.identity.attempt):
            await self._start()
            finished = await self._outcome(environment, timeout)
            log.info("rollout finished", status=finished.status, reward=finished.reward, turns=self.stream.steps)
        return finished

    async def _start(self) -> None:
        geometry = self.policy.renderers.geometry
        layout: dict[str, str] = {}
        if geometry is not None:
            layout = {"family": geometry.family, "fingerprint": geometry.fingerprint}
            if geometry.vllm_modality is not None:
                layout["vllm_modality"] = geometry.vllm_modality
        await self.stream.started(
            self.order.task,
            policy_version=self.facts.policy_version,
            config_digest=self.facts.config_digest,
            model=self.facts.model,
            pad_id=self.policy.renderers.pad_id,
            assets=str(self.policy.images.directory),
            layout=layout,
        )

    async def _outcome(self, environment: Callable[[], Environment], timeout: float) -> RolloutFinished:
        try:
            with anyio.fail_after(timeout):
                score = _checked(await environment().run(self.order.task, self.session))
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True), anyio.move_on_after(_LAST_WORDS):
                await self.stream.finished(RolloutStatus.ABANDONED)
            raise
        except QueueError:
            raise  # without its queue a rollout cannot even say that it failed
        except ContextExhausted as error:
            return await self.stream.finished(RolloutStatus.TRUNCATED, reward=0.0, error=_named(error))
        except TimeoutError as error:
            late = TimeoutError(f"not done within {timeout:g} s (worker.rollout_timeout)")
            return await self._failed(error if str(error) else late)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an environment raises is its rollout's end
            return await self._failed(error)
        cut = self.session.last_finish_reason == "length"
        status = RolloutStatus.TRUNCATED if cut else RolloutStatus.OK
        return await self.stream.finished(status, reward=score.reward, metrics=score.metrics)

    async def _failed(self, error: BaseException) -> RolloutFinished:
        log.warning("rollout failed", exc_info=error)
        self.error = error
        return await self.stream.finished(RolloutStatus.FAILED, error=_named(error))


def _checked(score: object) -> Score:
    if not isinstance(score, Score):
        raise ScoreError(f"run() returned a {type(score).__name__}; expected a rollout.Score")
    reward: object = score.reward
    if not isinstance(reward, int | float) or not math.isfinite(reward):
        raise ScoreError(f"the reward is {reward!r}; expected a finite number")
    return Score(float(reward), _numbers(score.metrics))


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ScoreError(f"metrics must map names to numbers: {error}") from None


def _named(error: BaseException) -> dict[str, str]:
    return {"type": type(error).__name__, "message": str(error)}
