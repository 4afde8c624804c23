"""One attempt at a rollout, from its started record to its one finished record, whatever the environment does."""

import asyncio
import contextvars
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import anyio
import structlog

from rollout.environments.base import ContextExhausted, Environment, describe_method
from rollout.errors import RolloutError, flatten_exceptions
from rollout.records.kinds import RolloutFinished, RolloutLimit, RolloutStatus
from rollout.records.stream import AttemptId, RolloutStream
from rollout.session.session import PolicyClient, Session
from rollout.tasks.orders import RolloutOrder
from rollout.worker.closing import EnvironmentCloser, wait_until_closed
from rollout.worker.containment import enter_attempt_context
from rollout.worker.failures import Failure, ScoreError, describe_failure, make_printable, requested_retry
from rollout.worker.scores import CheckedScore, check_score
from transports import Queue, QueueError

log = structlog.get_logger()

_UNREQUESTED_CANCELLATION = "the environment raised a cancellation of its own"
_CLEANUP_TIMEOUT = 5.0
"""Seconds in which a cancelled environment can clean up, before it is closed."""
_RunResult = CheckedScore | BaseException


class RolloutStopped(RolloutError):
    """A rollout was ended from outside; its finished record has this `status` and this `limit`."""

    status = RolloutStatus.FAILED
    limit = RolloutLimit.NONE


class RolloutTimeout(RolloutStopped):
    """A rollout, or one turn of it, did not end in time."""

    limit = RolloutLimit.TIME


class StragglerCut(RolloutStopped):
    """One of the last rollouts of a group was cut off; it is unscored, not failed."""

    status = RolloutStatus.UNSCORED
    limit = RolloutLimit.TIME


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

    After `play`, `failure` says what the environment or the engine raised, if the rollout failed.
    `stream.finished_record` is then the finished record, unless the infrastructure or the queue failed.
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
        self._started = False
        self._closer = EnvironmentCloser()
        self._is_cancelling_environment = False
        self._cancel_scope = anyio.CancelScope()
        self._stop_reason: RolloutStopped | None = None

    async def play(self, new_environment: Callable[[], Environment], *, timeout: float) -> RolloutFinished:
        """Play the rollout up to its finished record.

        Before it returns or raises, the environment was closed.

        Raises:
            Retry: the environment asks for another attempt; there is no finished record.
            RolloutError: the infrastructure failed; there is no finished record, and another attempt may succeed.
            QueueError: the records could not be put.
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
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        run_result: asyncio.Future[_RunResult] = loop.create_future()
        environment_task = loop.create_task(self._run_and_close(new_environment, run_result), context=context)
        run_ended: list[asyncio.Future[Any]] = [run_result, environment_task]
        self._cancel_scope.deadline = anyio.current_time() + timeout
        try:
            with self._cancel_scope:
                await asyncio.wait(run_ended, return_when=asyncio.FIRST_COMPLETED)
        finally:
            with anyio.CancelScope(shield=True):
                if not run_result.done():
                    self._is_cancelling_environment = True
                    environment_task.cancel()
                    await asyncio.wait(run_ended, timeout=_CLEANUP_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
                if run_result.done() or environment_task.done():
                    await wait_until_closed(environment_task)
                else:
                    # It waits for a thread, or it catches the cancellation.
                    log.warning(
                        "the environment does not let itself be ended, and is left behind", seconds=_CLEANUP_TIMEOUT
                    )
                    await wait_until_closed(loop.create_task(self._close(), context=context))
        if self._cancel_scope.cancelled_caught:
            timeout_error = RolloutTimeout(f"not done within {timeout:g} s (worker.rollout_timeout)")
            return await self._finish_with_error(self._stop_reason or timeout_error)
        score = run_result.result()
        if isinstance(score, BaseException):
            return await self._finish_after_exception(score)
        limit = self.session.last_limit if score.limit is RolloutLimit.NONE else score.limit
        return await self.stream.put_finished(
            RolloutStatus.OK,
            reward=score.reward,
            metrics=score.metrics,
            limit=limit,
            rewards=score.rewards,
            turn_rewards=score.turn_rewards,
        )

    async def _run_and_close(
        self, new_environment: Callable[[], Environment], run_result: "asyncio.Future[_RunResult]"
    ) -> None:
        """Run the environment and close it in the same task, as task groups and time-outs that it holds open need it.

        The result is known before the environment is closed, so that nothing which ends the closing changes it.
        """
        run_result.set_result(await self._run_environment(new_environment))
        await self._close()

    async def _close(self) -> None:
        self.stream.refuse_steps("its environment is being closed")
        await self._closer.close()

    async def _run_environment(self, new_environment: Callable[[], Environment]) -> _RunResult:
        """Return the environment's score, or what it raised, such that it can be printed.

        Everything that calls the environment's code happens here, also what its score and its exception do when they
        are looked at. Nothing is raised, because a task that raises SystemExit ends the event loop.
        """
        try:
            self._closer.environment = environment = new_environment()
            method = describe_method(environment, environment.scoring_method)
            returned = await environment.run(self.order.task, self.session)
            await asyncio.sleep(0)  # a cancellation that it asked for itself must not meet `close`
            if self.session.close_unawaited_calls():
                raise ScoreError(
                    f"{method} called `chat` without waiting for the reply, so the turn was never played; "
                    "write `await model.chat(…)`"
                )
            return check_score(returned, method, self.session.played_turns)
        except asyncio.CancelledError as error:
            if self._is_cancelling_environment:
                return error
            # Nobody cancelled this rollout. If this passed on, the rollout would end without a reason.
            cancellation_error = RuntimeError(_UNREQUESTED_CANCELLATION)
            cancellation_error.__cause__ = error
            return cancellation_error
        except BaseException as error:  # noqa: BLE001 - whatever an environment raises is its rollout's end
            return make_printable(error)

    async def _finish_after_exception(self, error: BaseException) -> RolloutFinished:
        leaf_errors = list(flatten_exceptions(error))
        for leaf_error in leaf_errors:
            # Without its queue, a rollout cannot say that it failed. Without an engine, another attempt may succeed.
            # An environment may have queues of its own; what they raise says nothing of ours.
            if (isinstance(leaf_error, QueueError) and self.stream.put_failed) or (
                isinstance(leaf_error, RolloutError) and leaf_error.infrastructure
            ):
                raise leaf_error
        if (retry := requested_retry(leaf_errors)) is not None:
            raise retry
        if all(isinstance(leaf, ContextExhausted) for leaf in leaf_errors):
            record = describe_failure(leaf_errors[0]).as_record()
            return await self.stream.put_finished(RolloutStatus.UNSCORED, limit=RolloutLimit.CONTEXT, error=record)
        return await self._finish_with_error(error)

    async def _finish_with_error(self, error: BaseException) -> RolloutFinished:
        stopped = error if isinstance(error, RolloutStopped) else RolloutStopped()
        failure = describe_failure(error)
        if stopped.status is RolloutStatus.FAILED:
            log.warning("rollout failed", exception=failure.full_traceback)
            self.failure = failure
        return await self.stream.put_finished(stopped.status, limit=stopped.limit, error=failure.as_record())

    def _bind_log_context(self) -> AbstractContextManager[None]:
        return structlog.contextvars.bound_contextvars(
            rollout=self.order.rollout_id, attempt=self.stream.attempt_id.attempt
        )
