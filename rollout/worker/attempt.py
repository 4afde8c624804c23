"""One attempt at a rollout, from its started record to its one finished record, whatever the environment does."""

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
from rollout.errors import RolloutError, flatten_exceptions
from rollout.records.kinds import RolloutFinished, RolloutStatus
from rollout.records.messages import FinishReason
from rollout.records.stream import AttemptId, RolloutStream
from rollout.session.session import PolicyClient, Session
from rollout.tasks.orders import RolloutOrder
from rollout.worker.containment import enter_attempt_context
from transports import Queue, QueueError

log = structlog.get_logger()

_MAX_MESSAGE_CHARS = 10_000
_CLEANUP_TIMEOUT = 5.0
"""Seconds in which a cancelled environment can clean up."""


class ScoreError(Exception):
    """An environment returned something that is not a score."""


class RolloutStopped(RolloutError):
    """A rollout was ended from outside; its finished record has the status `status`."""

    status = RolloutStatus.FAILED


class RolloutTimeout(RolloutStopped):
    """A rollout, or one turn of it, did not end in time."""


class StragglerCut(RolloutStopped):
    """One of the last rollouts of a group was cut off; what it did so far is truncated, not failed."""

    status = RolloutStatus.TRUNCATED


class RolloutAbandoned(RolloutStopped):
    """Nobody needs this rollout any more."""

    status = RolloutStatus.ABANDONED


@dataclass(frozen=True, slots=True)
class RunMetadata:
    """What the started record of every rollout says about the run.

    Attributes:
        run_id: the run's id.
        environment: the name of the environment in the run (`run.name`).
        model: the name under which the engines serve the model.
        policy_version: the trainer's version of the policy when the attempt starts.
        config_digest: the digest of the configuration, see `Config.digest`.
    """

    run_id: str
    environment: str
    model: str
    policy_version: str
    config_digest: str


class Attempt:
    """Plays one order with a fresh environment.

    After `play`, `error` is what the environment or the engine raised, if the rollout failed. `stream.finished_record`
    is then the finished record, unless the infrastructure or the queue failed.
    """

    def __init__(
        self, order: RolloutOrder, attempt_number: int, policy: PolicyClient, metadata: RunMetadata, queue: Queue
    ) -> None:
        task = order.task
        self.order = order
        self.policy = policy
        self.metadata = metadata
        self.stream = RolloutStream(
            queue,
            AttemptId(
                metadata.run_id,
                metadata.environment,
                task.id,
                order.rollout_id,
                order.sample,
                order.group_size,
                attempt_number,
            ),
        )
        self.session = Session(policy, self.stream)
        self.error: BaseException | None = None
        self._started = False
        self._cancel_scope = anyio.CancelScope()
        self._stop_reason: RolloutStopped | None = None

    async def play(self, new_environment: Callable[[], Environment], *, timeout: float) -> RolloutFinished:
        """Play the rollout up to its finished record.

        Raises:
            RolloutError: the infrastructure failed; there is no finished record, and another attempt may succeed.
            QueueError: the records could not be put.
        """
        enter_attempt_context()
        with self._bind_log_context():
            await self._write_started_record()
            finished = await self._run_until_deadline(new_environment, timeout)
            log.info("rollout finished", status=finished.status, reward=finished.reward, turns=self.stream.step_count)
        return finished

    def stop(self, reason: RolloutStopped) -> None:
        """End the rollout from outside; its finished record gets the status of the reason."""
        self._stop_reason = self._stop_reason or reason
        self._cancel_scope.cancel()

    async def finish_without_playing(self, error: RolloutError) -> RolloutFinished:
        """Write the finished record of a rollout that gets no other attempt."""
        with self._bind_log_context():
            await self._write_started_record()
            return await self._finish_with_error(error)

    async def _write_started_record(self) -> None:
        if self._started:
            return
        self._started = True
        geometry = self.policy.renderers.geometry
        layout_fields: dict[str, str] = {}
        if geometry is not None:
            layout_fields = {"family": geometry.family, "fingerprint": geometry.fingerprint}
            if geometry.vllm_modality is not None:
                layout_fields["vllm_modality"] = geometry.vllm_modality
        await self.stream.put_started(
            self.order.task,
            policy_version=self.metadata.policy_version,
            config_digest=self.metadata.config_digest,
            model=self.metadata.model,
            pad_id=self.policy.renderers.pad_id,
            assets=str(self.policy.image_policy.directory),
            layout=layout_fields,
        )

    async def _run_until_deadline(self, new_environment: Callable[[], Environment], timeout: float) -> RolloutFinished:
        # A separate task: an environment that ignores its cancellation is left behind.
        environment_task = asyncio.ensure_future(self._run_environment(new_environment))
        self._cancel_scope.deadline = anyio.current_time() + timeout
        try:
            with self._cancel_scope:
                await asyncio.wait([environment_task])
        finally:
            if not environment_task.done():
                await _cancel_or_leave_behind(environment_task)
        if self._cancel_scope.cancelled_caught:
            timeout_error = RolloutTimeout(f"not done within {timeout:g} s (worker.rollout_timeout)")
            return await self._finish_with_error(self._stop_reason or timeout_error)
        returned, error = environment_task.result()
        if error is not None:
            return await self._finish_after_exception(error)
        try:
            score = _validate_score(returned)
        except ScoreError as score_error:
            return await self._finish_with_error(score_error)
        hit_length_limit = self.session.last_finish_reason is FinishReason.LENGTH
        status = RolloutStatus.TRUNCATED if hit_length_limit else RolloutStatus.OK
        return await self.stream.put_finished(status, reward=score.reward, metrics=score.metrics)

    async def _run_environment(self, new_environment: Callable[[], Environment]) -> tuple[object, BaseException | None]:
        """Return what the environment returned, or what it raised.

        Nothing is raised here, because a task that raises SystemExit ends the event loop.
        """
        try:
            return await new_environment().run(self.order.task, self.session), None
        except GeneratorExit:
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled this rollout. If this passed on, the rollout would end without a reason.
            replacement_error = RuntimeError("the environment raised a cancellation of its own")
            replacement_error.__cause__ = error
            return None, replacement_error
        except BaseException as error:  # noqa: BLE001 - whatever an environment raises is its rollout's end
            return None, error

    async def _finish_after_exception(self, error: BaseException) -> RolloutFinished:
        leaf_errors = list(flatten_exceptions(error))
        for leaf_error in leaf_errors:
            # Without its queue, a rollout cannot say that it failed. Without an engine, another attempt may succeed.
            if isinstance(leaf_error, QueueError) or (
                isinstance(leaf_error, RolloutError) and leaf_error.infrastructure
            ):
                raise leaf_error
        if all(isinstance(leaf, ContextExhausted) for leaf in leaf_errors):
            return await self.stream.put_finished(
                RolloutStatus.TRUNCATED, reward=0.0, error=_describe_error(leaf_errors[0])
            )
        return await self._finish_with_error(error)

    async def _finish_with_error(self, error: BaseException) -> RolloutFinished:
        status = error.status if isinstance(error, RolloutStopped) else RolloutStatus.FAILED
        if status is RolloutStatus.FAILED:
            log.warning("rollout failed", exc_info=error)
            self.error = error
        reward = 0.0 if status is RolloutStatus.TRUNCATED else None
        return await self.stream.put_finished(status, reward=reward, error=_describe_error(error))

    def _bind_log_context(self) -> AbstractContextManager[None]:
        return structlog.contextvars.bound_contextvars(
            rollout=self.order.rollout_id, attempt=self.stream.attempt_id.attempt
        )


async def _cancel_or_leave_behind(environment_task: "asyncio.Task[Any]") -> None:
    """Cancel an environment's task, and go on without it if it does not end.

    It does not end if it waits for a thread, or if it catches the cancellation.
    """
    environment_task.cancel()
    with anyio.CancelScope(shield=True):
        await asyncio.wait([environment_task], timeout=_CLEANUP_TIMEOUT)
    if not environment_task.done():
        log.warning("the environment does not let itself be ended, and is left behind", seconds=_CLEANUP_TIMEOUT)


def _validate_score(score: object) -> Score:
    if not isinstance(score, Score):
        raise ScoreError(f"run() returned a {type(score).__name__}; expected a rollout.Score")
    if not isinstance(score.metrics, Mapping):
        raise ScoreError(f"the metrics are a {type(score.metrics).__name__}; expected a mapping of names to numbers")
    metrics = {
        str(name): _require_finite_number(f"the metric {name!r}", value) for name, value in score.metrics.items()
    }
    return Score(_require_finite_number("the reward", score.reward), metrics)


def _require_finite_number(name: str, value: object) -> float:
    """Accept anything that is one number, also a number of numpy or a tensor with one element."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ScoreError(f"{name} is {value!r}; expected a finite number")
    return number


def _describe_error(error: BaseException) -> dict[str, str]:
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an exception of an environment may fail at this, too
        message = "(the exception cannot be told as text)"
    truncated = f"{message[:_MAX_MESSAGE_CHARS]} … ({len(message):,} characters)"
    return {"type": type(error).__name__, "message": message if len(message) <= _MAX_MESSAGE_CHARS else truncated}
