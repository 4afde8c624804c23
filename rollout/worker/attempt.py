"""One attempt at a rollout, from its started to its one finished record, whatever the environment does."""

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import anyio
import structlog

from rollout.engine.errors import ContextExhausted
from rollout.environments.base import Environment, Score
from rollout.errors import RolloutError, leaves
from rollout.records.stream import RolloutId, RolloutStream
from rollout.records.wire import RolloutFinished, RolloutStatus
from rollout.session.session import Policy, Session
from rollout.tasks.orders import RolloutOrder
from rollout.worker.containment import begin_attempt
from transports import Queue, QueueError

log = structlog.get_logger()

_MESSAGE_LIMIT = 10_000
_UNWIND = 5.0
"""Seconds that an environment which was cancelled has for its own clearing up."""


class ScoreError(Exception):
    """An environment returned something that is not a score."""


class RolloutStopped(RolloutError):
    """A rollout was ended from outside; `status` is how its record says so."""

    status = RolloutStatus.FAILED


class RolloutTimeout(RolloutStopped):
    """A rollout, or one turn of it, was not done in time."""


class StragglerCut(RolloutStopped):
    """The last of a group was cut off where it was."""

    status = RolloutStatus.TRUNCATED


class RolloutAbandoned(RolloutStopped):
    """Nobody waits for this rollout any more."""

    status = RolloutStatus.ABANDONED


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
    finished record, unless the infrastructure or the queue failed.
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
        self._began = False
        self._scope = anyio.CancelScope()
        self._stopped: RolloutStopped | None = None

    async def play(self, environment: Callable[[], Environment], *, timeout: float) -> RolloutFinished:
        """Play it to its finished record.

        Raises:
            RolloutError: the infrastructure failed; there is no finished record, and another attempt may succeed.
            QueueError: the records could not be put.
        """
        begin_attempt()
        with self._bound():
            await self._begin()
            finished = await self._outcome(environment, timeout)
            log.info("rollout finished", status=finished.status, reward=finished.reward, turns=self.stream.steps)
        return finished

    def stop(self, reason: RolloutStopped) -> None:
        """End it from outside, with a finished record of the reason's status."""
        self._stopped = self._stopped or reason
        self._scope.cancel()

    async def give_up(self, error: RolloutError) -> RolloutFinished:
        """Write the finished record of a rollout that gets no other attempt."""
        with self._bound():
            await self._begin()
            return await self._ended(error)

    async def _begin(self) -> None:
        if self._began:
            return
        self._began = True
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
        # In a task of its own, so that an environment which does not let itself be cancelled is left behind.
        playing = asyncio.ensure_future(self._run(environment))
        self._scope.deadline = anyio.current_time() + timeout
        try:
            with self._scope:
                await asyncio.wait([playing])
        finally:
            if not playing.done():
                await _let_go(playing)
        if self._scope.cancelled_caught:
            late = RolloutTimeout(f"not done within {timeout:g} s (worker.rollout_timeout)")
            return await self._ended(self._stopped or late)
        answer, error = playing.result()
        if error is not None:
            return await self._judged(error)
        try:
            score = _checked(answer)
        except ScoreError as wrong:
            return await self._ended(wrong)
        cut = self.session.last_finish_reason == "length"
        status = RolloutStatus.TRUNCATED if cut else RolloutStatus.OK
        return await self.stream.finished(status, reward=score.reward, metrics=score.metrics)

    async def _run(self, environment: Callable[[], Environment]) -> tuple[object, BaseException | None]:
        """What the environment returned, or raised. It never raises: a task that raises SystemExit ends the loop."""
        try:
            return await environment().run(self.order.task, self.session), None
        except GeneratorExit:
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled this rollout; let through, this would end it without a word.
            made_up = RuntimeError("the environment raised a cancellation of its own")
            made_up.__cause__ = error
            return None, made_up
        except BaseException as error:  # noqa: BLE001 - whatever an environment raises is its rollout's end
            return None, error

    async def _judged(self, error: BaseException) -> RolloutFinished:
        found = list(leaves(error))
        for leaf in found:
            # Without its queue a rollout cannot even say that it failed; without an engine it may be tried again.
            if isinstance(leaf, QueueError) or (isinstance(leaf, RolloutError) and leaf.infrastructure):
                raise leaf
        if all(isinstance(leaf, ContextExhausted) for leaf in found):
            return await self.stream.finished(RolloutStatus.TRUNCATED, reward=0.0, error=_named(found[0]))
        return await self._ended(error)

    async def _ended(self, error: BaseException) -> RolloutFinished:
        status = error.status if isinstance(error, RolloutStopped) else RolloutStatus.FAILED
        if status is RolloutStatus.FAILED:
            log.warning("rollout failed", exc_info=error)
            self.error = error
        reward = 0.0 if status is RolloutStatus.TRUNCATED else None
        return await self.stream.finished(status, reward=reward, error=_named(error))

    def _bound(self) -> AbstractContextManager[None]:
        return structlog.contextvars.bound_contextvars(rollout=self.order.rollout, attempt=self.stream.identity.attempt)


async def _let_go(playing: "asyncio.Task[Any]") -> None:
    """Cancel what an environment does, and go on without it if that does not end it: a thread, or a caught cancel."""
    playing.cancel()
    with anyio.CancelScope(shield=True):
        await asyncio.wait([playing], timeout=_UNWIND)
    if not playing.done():
        log.warning("the environment does not let itself be ended, and is left behind", seconds=_UNWIND)


def _checked(score: object) -> Score:
    if not isinstance(score, Score):
        raise ScoreError(f"run() returned a {type(score).__name__}; expected a rollout.Score")
    if not isinstance(score.metrics, Mapping):
        raise ScoreError(f"the metrics are a {type(score.metrics).__name__}; expected a mapping of names to numbers")
    metrics = {str(name): _number(f"the metric {name!r}", value) for name, value in score.metrics.items()}
    return Score(_number("the reward", score.reward), metrics)


def _number(what: str, value: object) -> float:
    """Whatever is one number: also one of numpy's, or a tensor of one element."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ScoreError(f"{what} is {value!r}; expected a finite number")
    return number


def _named(error: BaseException) -> dict[str, str]:
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an exception of an environment may fail at this, too
        message = "(the exception cannot be told as text)"
    cut = f"{message[:_MESSAGE_LIMIT]} … ({len(message):,} characters)"
    return {"type": type(error).__name__, "message": message if len(message) <= _MESSAGE_LIMIT else cut}
