"""Plays one attempt at a rollout, from its started record to its finished record."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import structlog

from rollout.environments.base import ContextExhausted, Environment
from rollout.errors import RolloutError, flatten_exceptions
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.kinds import RolloutFinished
from rollout.records.stream import AttemptId, RolloutStream
from rollout.session.policy import PolicyClient
from rollout.session.session import Session
from rollout.tasks.orders import RolloutOrder
from rollout.worker.containment import enter_attempt_context
from rollout.worker.failures import Failure, describe_failure, requested_retry
from rollout.worker.running import EnvironmentRun
from transports import Queue, QueueError

log = structlog.get_logger()


class RolloutStopped(RolloutError):
    """The worker ended a rollout. The rollout's finished record gets the `status` and the `limit` of this class."""

    status = RolloutStatus.FAILED
    limit = RolloutLimit.NONE


class RolloutTimeout(RolloutStopped):
    """A rollout, or one turn of it, did not end in time."""

    limit = RolloutLimit.TIME


class StragglerCut(RolloutStopped):
    """One of the last rollouts of a group took too long and was ended. Its status is unscored, not failed."""

    status = RolloutStatus.UNSCORED
    limit = RolloutLimit.TIME


class RolloutAbandoned(RolloutStopped):
    """The rollout was ended, or not started, because nobody needs it any more."""

    status = RolloutStatus.ABANDONED


@dataclass(frozen=True, slots=True)
class RunMetadata:
    """The facts about a run that the started record of each rollout contains.

    Attributes:
        run_id: the run's id.
        environment: the name of the environment in the run (`run.name`).
        model: the name under which the engines serve the model.
        policy_version: the trainer's policy version when the attempt starts.
        config_digest: the digest of the configuration; see `Config.digest`.
    """

    run_id: str
    environment: str
    model: str
    policy_version: str
    config_digest: str


class Attempt:
    """Plays one order with a fresh environment.

    Attributes:
        order: the order to play.
        policy: the client of the policy that the environment talks to.
        metadata: the facts about the run for the started record.
        stream: puts the records on the queue; `stream.finished_record` is None until there is a finished record.
        session: the model that the environment talks to.
        failure: the error that made the rollout fail; None if it did not fail.
        close_failure: the error that occurred when the environment was closed; None if there was none.
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
        self.failure: Failure | None = None
        self.close_failure: Failure | None = None
        self._started = False
        self._cancel_scope = anyio.CancelScope()
        self._stop_reason: RolloutStopped | None = None

    async def play(self, new_environment: Callable[[], Environment], *, timeout: float) -> RolloutFinished:
        """Play the rollout, put its finished record on the queue, and return this record.

        The environment is closed before this method returns or raises.

        Raises:
            Retry: the environment asks for another attempt; there is no finished record.
            RolloutError: the infrastructure failed; there is no finished record, and another attempt may succeed.
            QueueError: a record could not be put on the queue.
        """
        enter_attempt_context(self.stream.refuse_steps)
        with self._bind_log_context():
            await self._write_started_record()
            finished = await self._run_until_deadline(new_environment, timeout)
            log.info(
                "rollout finished",
                status=finished.status,
                limit=finished.limit,
                reward=finished.reward,
                turns=self.stream.step_count,
            )
        return finished

    def stop(self, reason: RolloutStopped) -> None:
        """End the rollout; its finished record gets the status and the limit of `reason`."""
        self._stop_reason = self._stop_reason or reason
        self._cancel_scope.cancel()

    async def finish_without_playing(self, error: RolloutError) -> RolloutFinished:
        """Put the finished record of a rollout that gets no other attempt, and return this record."""
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
        run = EnvironmentRun(
            new_environment,
            self.order.task,
            self.session,
            before_closing=partial(self.stream.refuse_steps, "its environment is being closed"),
        )
        self._cancel_scope.deadline = anyio.current_time() + timeout
        try:
            with self._cancel_scope:
                await asyncio.wait(run.ended, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await run.end()
            self.close_failure = run.close_failure
        if self._cancel_scope.cancelled_caught:
            timeout_error = RolloutTimeout(f"the rollout did not end within {timeout:g} s (worker.rollout_timeout)")
            return await self._finish_with_error(self._stop_reason or timeout_error)
        score = run.result
        assert score is not None
        if isinstance(score, BaseException):
            return await self._finish_after_exception(score)
        limit = self.session.counters.last_limit if score.limit is RolloutLimit.NONE else score.limit
        return await self._put_finished(
            RolloutStatus.OK,
            reward=score.reward,
            metrics=score.metrics,
            limit=limit,
            rewards=score.rewards,
            turn_rewards=score.turn_rewards,
        )

    async def _finish_after_exception(self, error: BaseException) -> RolloutFinished:
        leaf_errors = list(flatten_exceptions(error))
        for leaf_error in leaf_errors:
            # If our queue fails, no finished record can be put. If an engine fails, another attempt may succeed.
            # The environment may also use a queue of its own; a QueueError of that queue is an ordinary failure.
            if (isinstance(leaf_error, QueueError) and self.stream.put_failed) or (
                isinstance(leaf_error, RolloutError) and leaf_error.infrastructure
            ):
                raise leaf_error
        if (retry := requested_retry(leaf_errors)) is not None:
            raise retry
        if all(isinstance(leaf, ContextExhausted) for leaf in leaf_errors):
            record = describe_failure(leaf_errors[0]).as_record()
            return await self._put_finished(RolloutStatus.UNSCORED, limit=RolloutLimit.CONTEXT, error=record)
        return await self._finish_with_error(error)

    async def _finish_with_error(self, error: BaseException) -> RolloutFinished:
        stopped = error if isinstance(error, RolloutStopped) else RolloutStopped()
        failure = describe_failure(error)
        if stopped.status is RolloutStatus.FAILED:
            explains_itself = isinstance(error, RolloutError) and failure.traceback is None
            text = f"{failure.type}: {failure.message}" if explains_itself else failure.full_traceback
            log.warning("rollout failed", exception=text)
            self.failure = failure
        return await self._put_finished(stopped.status, limit=stopped.limit, error=failure.as_record())

    async def _put_finished(self, status: RolloutStatus, **fields: Any) -> RolloutFinished:
        """Put the finished record on the queue, with what the endpoints of the rollout know."""
        return await self.stream.put_finished(
            status, unreceived_turns=self.session.unreceived_turns(), root_kinds=self.session.root_kinds(), **fields
        )

    def _bind_log_context(self) -> AbstractContextManager[None]:
        return structlog.contextvars.bound_contextvars(
            rollout=self.order.rollout_id, attempt=self.stream.attempt_id.attempt
        )
