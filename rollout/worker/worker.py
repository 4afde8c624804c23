"""A worker leases orders, plays each as one rollout, and acks an order once its finished record is accepted.

A rollout that fails never ends another rollout. If an attempt fails because of the infrastructure, or its environment
raises `Retry`, another attempt follows with a fresh environment. After `worker.halt_after` failures of the
infrastructure in a row, the worker ends, so that it does not use up the attempts of all rollouts.
An order that the worker did not finish is not acked, so the queue delivers it again, to this worker or another one.
"""

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import anyio
import anyio.to_thread
import structlog

from rollout.config.load import Config
from rollout.environments.base import Environment, Retry
from rollout.errors import RolloutError
from rollout.rundir.claims import Claim, Claims, Outcome
from rollout.rundir.outcomes import OutcomeTotals
from rollout.session.policy import PolicyClient
from rollout.tasks.orders import OrderError, RolloutOrder, decode_order
from rollout.worker.attempt import Attempt, RolloutAbandoned, RunMetadata
from rollout.worker.deadlines import DeadlineEnforcer
from rollout.worker.failures import describe_failure, shorten_line
from rollout.worker.shared_lock import SharedLock
from transports import Delivery, Queue, QueueError, StaleLease

log = structlog.get_logger()

_POLL_INTERVAL = 0.2
_FINAL_WRITE_TIMEOUT = 5.0
"""Seconds for each write that a worker must still do after it was cancelled."""
_RETRY_PAUSE_SECONDS = 0.5


class AttemptsExhausted(RolloutError):
    """All allowed attempts at a rollout have started, and none of them finished."""


class WorkerHalted(RolloutError):
    """The infrastructure failed several attempts in a row, so the worker stops before it uses up more attempts."""


@dataclass(slots=True)
class _RolloutHistory:
    """Facts about this worker's attempts at one rollout, for the outcome of the rollout.

    Attributes:
        retries: see `Outcome.retries`.
        request_retries: see `Outcome.request_retries`.
        retry_reason: see `Outcome.retry_reason`.
    """

    retries: int = 0
    request_retries: int = 0
    retry_reason: str | None = None


class Worker:
    """Plays rollouts of one environment with one policy.

    Attributes:
        totals: the totals of the rollouts that this worker has finished.
        draining: whether the worker accepts no more orders.
    """

    def __init__(
        self,
        config: Config,
        policy: PolicyClient,
        metadata: RunMetadata,
        claims: Claims,
        tasks_queue: Queue,
        trajectories_queue: Queue,
        shared_resources: object = None,
    ) -> None:
        self.totals = OutcomeTotals()
        self.draining = False
        self._config = config
        self._policy = policy
        self._metadata = metadata
        self._claims = claims
        self._tasks_queue = tasks_queue
        self._trajectories_queue = trajectories_queue
        self._shared_resources = shared_resources
        self._attempts_in_flight: set[Attempt] = set()
        self._interrupted_attempts: list[tuple[Attempt, _RolloutHistory]] = []
        self._failures_in_a_row = 0
        self._accept_scope = anyio.CancelScope()
        self._free_slots = anyio.Semaphore(config.worker.concurrency)
        # A rollout that may have killed a worker is played alone, so that no other rollout loses an attempt with it.
        self._quarantine_lock = SharedLock()
        self._deadline_enforcer = DeadlineEnforcer(claims, config.policy, config.worker.turn_timeout)

    @property
    def in_flight(self) -> int:
        """The number of rollouts that the worker plays now."""
        return len(self._attempts_in_flight)

    async def run(self) -> None:
        """Take orders and play them until the worker is drained or cancelled.

        Raises:
            WorkerHalted: the infrastructure failed too many times in a row.
            ClaimsError, QueueError: the run's directory or a queue cannot be used.
        """
        async with anyio.create_task_group() as watch_group:
            watch_group.start_soon(self._deadline_enforcer.watch, self._attempts_in_flight)
            async with anyio.create_task_group() as play_group:
                with self._accept_scope:
                    while True:
                        async with AsyncExitStack() as stack:
                            await self._acquire_slot(stack)
                            if (delivery := await self._tasks_queue.receive(timeout=_POLL_INTERVAL)) is not None:
                                play_group.start_soon(self._handle_order, delivery, stack.pop_all())
            watch_group.cancel_scope.cancel()

    def drain(self) -> None:
        """Accept no more orders; `run` returns once the rollouts in flight have ended."""
        self.draining = True
        self._accept_scope.cancel()

    def advance_version(self, version: str | None) -> None:
        """Set the policy version that the supervisor or an order reports; a lower number than now is ignored."""
        current = self._policy.version.current
        if version is not None and not (version.isdigit() and current.isdigit() and int(version) < int(current)):
            self._policy.version.current = version

    def require_version(self, version: str | None) -> None:
        """Use only engines with this version of the weights or a newer one; None: use any engine.

        The version may be lower than before, because a trainer may go back to an earlier version.
        """
        self._policy.version.required = version
        if version is not None:
            self._policy.version.current = version

    async def abandon_interrupted(self) -> None:
        """Finish the rollouts that were interrupted when `run` was cancelled; their status is abandoned."""
        for attempt, history in self._interrupted_attempts:
            if attempt.stream.finished_record is None:
                await attempt.finish_without_playing(RolloutAbandoned("the run was stopped"))
            self._add_outcome(attempt, history)

    async def _acquire_slot(self, stack: AsyncExitStack) -> None:
        """Wait until another rollout may start, and take a slot for it, which the stack releases."""
        await self._free_slots.acquire()
        stack.callback(self._free_slots.release)
        token_limit = self._config.worker.tokens_in_flight
        while token_limit is not None and self._estimate_tokens_in_flight(token_limit) >= token_limit:  # noqa: ASYNC110 - any turn may change the estimate
            await anyio.sleep(_POLL_INTERVAL)
        with self._policy.metrics.time_admission():
            await self._trajectories_queue.admit()
        admission = self._config.environment_class.admission(self._config.environment_settings, self._shared_resources)
        await stack.enter_async_context(admission)

    def _estimate_tokens_in_flight(self, token_limit: int) -> float:
        """Return an estimate of the number of tokens of all rollouts in flight.

        A rollout that has sent no request yet counts as the average of the others. If no rollout has sent a request,
        each counts as `token_limit`, so that the first rollout is played alone.
        """
        context_tokens = [attempt.session.counters.context_tokens for attempt in self._attempts_in_flight]
        known_tokens = [tokens for tokens in context_tokens if tokens]
        attempts_in_flight = self._config.worker.concurrency - self._free_slots.value - 1
        average_tokens = sum(known_tokens) / len(known_tokens) if known_tokens else token_limit
        return sum(known_tokens) + average_tokens * (attempts_in_flight - len(known_tokens))

    async def _handle_order(self, delivery: Delivery, slot: AsyncExitStack) -> None:
        try:
            async with slot:
                order = decode_order(delivery.frames)
                await self._play_until_finished(order)
                await delivery.ack()
        except OrderError as error:
            log.error("order refused", tag=delivery.tag, error=str(error))
            await delivery.reject(str(error))
        except StaleLease:
            # This process was paused so long that another worker got the order. The first finished attempt counts.
            log.warning("the lease of an order was lost", tag=delivery.tag)

    async def _play_until_finished(self, order: RolloutOrder) -> None:
        """Play attempts at a rollout until it has a finished record."""
        if await anyio.to_thread.run_sync(self._claims.is_done, order.rollout_id):
            return
        history = _RolloutHistory()
        while True:
            attempts = await anyio.to_thread.run_sync(self._claims.attempt_history, order.rollout_id)
            is_last_attempt = attempts.attempts_used == self._config.worker.max_attempts - 1
            async with (
                self._quarantine_lock.exclusive()
                if is_last_attempt and attempts.unreported_attempts
                else self._quarantine_lock.shared()
            ):
                if await self._claim_and_play(order, history):
                    return
            await anyio.sleep(_RETRY_PAUSE_SECONDS)

    async def _claim_and_play(self, order: RolloutOrder, history: _RolloutHistory) -> bool:
        """Claim and play one attempt; return whether the rollout is done."""
        with anyio.CancelScope(shield=True):  # a claim must be played or returned
            claim = await anyio.to_thread.run_sync(self._claims.claim_next_attempt, order.rollout_id)
        self.advance_version(order.policy_version)
        metadata = replace(self._metadata, policy_version=self._policy.version.current)
        attempt = Attempt(order, claim.attempt_number, self._policy, metadata, self._trajectories_queue)
        history.retries = min(claim.attempts_used, self._config.worker.max_attempts) - 1
        if history.retries == claim.attempts_used - 1 > 0:
            self._policy.metrics.record_retry()
        try:
            await self._play_attempt(attempt, claim, history)
        except anyio.get_cancelled_exc_class():
            self._interrupted_attempts.append((attempt, history))
            await self._return_claim(claim)
            raise
        except QueueError:
            await self._return_claim(claim)
            raise
        finally:
            history.request_retries += attempt.session.counters.request_retries
        if attempt.stream.finished_record is None:
            await anyio.to_thread.run_sync(self._claims.mark_failed, claim)
            return False
        outcome = self._add_outcome(attempt, history)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._claims.record_outcome, outcome)
        return True

    async def _play_attempt(self, attempt: Attempt, claim: Claim, history: _RolloutHistory) -> None:
        max_attempts = self._config.worker.max_attempts
        if claim.attempts_used > max_attempts:
            exhausted = AttemptsExhausted(
                f"{max_attempts} attempts started (worker.max_attempts), and none of them finished. Look in the logs "
                "for workers that died."
            )
            await attempt.finish_without_playing(exhausted)
            return
        if (abandon_reason := await self._deadline_enforcer.reason_to_abandon(attempt.order)) is not None:
            await attempt.finish_without_playing(abandon_reason)
            return
        self._attempts_in_flight.add(attempt)
        try:
            await attempt.play(self._new_environment, timeout=self._config.worker.rollout_timeout)
        except Retry as error:
            reason = describe_failure(error).message
            log.warning(
                "the environment asks for another attempt",
                rollout=claim.rollout_id,
                attempt=claim.attempt_number,
                reason=reason,
            )
            history.retry_reason = shorten_line(reason)
            if claim.attempts_used == max_attempts:
                await attempt.finish_without_playing(error)
        except RolloutError as error:
            log.warning(
                "the infrastructure failed", rollout=claim.rollout_id, attempt=claim.attempt_number, error=str(error)
            )
            await self._halt_if_too_many_failures(error, claim)
            if claim.attempts_used == max_attempts:
                await attempt.finish_without_playing(error)
        else:
            self._failures_in_a_row = 0
        finally:
            self._attempts_in_flight.discard(attempt)

    def _new_environment(self) -> Environment:
        environment = self._config.new_environment()
        environment.shared_resources = self._shared_resources
        return environment

    async def _halt_if_too_many_failures(self, error: RolloutError, claim: Claim) -> None:
        self._failures_in_a_row = failures = self._failures_in_a_row + 1
        if failures >= self._config.worker.halt_after:
            await self._return_claim(claim)
            raise WorkerHalted(
                f"the infrastructure failed {failures} times in a row (worker.halt_after). The last failure: {error}"
            ) from error

    async def _return_claim(self, claim: Claim) -> None:
        with anyio.move_on_after(_FINAL_WRITE_TIMEOUT, shield=True):
            await anyio.to_thread.run_sync(self._claims.mark_returned, claim)

    def _add_outcome(self, attempt: Attempt, history: _RolloutHistory) -> Outcome:
        """Add the outcome of a rollout to the totals, and return this outcome."""
        finished_record, counters = attempt.stream.finished_record, attempt.session.counters
        assert finished_record is not None
        outcome = Outcome(
            rollout=attempt.order.rollout_id,
            group=attempt.order.task.id,
            attempt=attempt.stream.attempt_id.attempt,
            status=finished_record.status.value,
            limit=finished_record.limit.value,
            reward=finished_record.reward,
            rewards={name: reward.value for name, reward in finished_record.rewards.items()},
            turns=len(counters.played_turns),
            images=attempt.session.image_count,
            tokens=counters.sampled_tokens,
            queue_bytes=attempt.stream.byte_count,
            error=dict(finished_record.error) if finished_record.error is not None else None,
            traceback=attempt.failure.traceback if attempt.failure is not None else None,
            metrics=dict(finished_record.metrics),
            retries=history.retries,
            request_retries=history.request_retries,
            close_failed=attempt.close_failure is not None,
            retry_reason=history.retry_reason,
            gateway=dict(counters.gateway),
            prompts={source.value: number for source, number in counters.prompt_sources.items()},
        )
        self.totals.add(outcome)
        return outcome
