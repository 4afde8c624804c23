"""A worker: leases orders, plays each as one rollout, and acks an order once its finished record is accepted.

One failed rollout never ends another one. If the infrastructure fails an attempt, or its environment raises `Retry`,
another one follows with a fresh environment. `worker.halt_after` failures of the infrastructure in a row end the
worker, before it uses up the attempts of all rollouts.
An order that the worker did not finish is not acked, and is delivered again, here or elsewhere.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

import anyio
import anyio.to_thread
import structlog

from rollout.config.load import Config
from rollout.environments.base import Environment, Retry
from rollout.errors import RolloutError
from rollout.records.endings import RolloutLimit
from rollout.records.kinds import PromptSource
from rollout.rundir.claims import Claim, Claims, Outcome
from rollout.session.session import PolicyClient
from rollout.tasks.orders import OrderError, RolloutOrder, decode_order
from rollout.worker.attempt import Attempt, RolloutAbandoned, RunMetadata
from rollout.worker.deadlines import DeadlineEnforcer
from rollout.worker.failures import describe_failure, shorten_line
from rollout.worker.shared_lock import SharedLock
from transports import Delivery, Queue, QueueError, StaleLease

log = structlog.get_logger()

_POLL_INTERVAL = 0.2
_FINAL_WRITE_TIMEOUT = 5.0
"""Seconds that a cancelled worker has for each write that it must still do."""
_RETRY_PAUSE_SECONDS = 0.5


class AttemptsExhausted(RolloutError):
    """As many attempts at a rollout started as are allowed, and none came to its end."""


class WorkerHalted(RolloutError):
    """The infrastructure failed several attempts in a row; to go on would only use up the attempts of more rollouts."""


@dataclass(slots=True)
class WorkerCounters:
    """What a worker did so far.

    Attributes:
        in_flight: how many rollouts it plays now.
        finished: how many rollouts have a finished record of this worker.
        status_counts: how many of them ended with each status.
        turns: turns of the rollouts that ended.
        tokens: tokens that the policy sampled in the rollouts that ended.
        images: different images in the rollouts that ended, counted for each rollout.
        limits: how many of them each limit stopped.
        retries: attempts that followed one that the infrastructure failed, whose worker died, or whose environment
            asked for another one.
        close_failures: attempts whose environment could not be closed.
        retry_reason: why an environment last asked for another attempt; None if none did.
        queue_bytes: bytes of the records of the rollouts that ended.
        prompt_sources: how many prompts came from each source, in the rollouts that ended.
    """

    in_flight: int = 0
    finished: int = 0
    status_counts: Counter[str] = field(default_factory=Counter)
    limits: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    tokens: int = 0
    images: int = 0
    retries: int = 0
    close_failures: int = 0
    retry_reason: str | None = None
    queue_bytes: int = 0
    prompt_sources: Counter[PromptSource] = field(default_factory=Counter)

    def add(self, attempt: Attempt) -> None:
        """Add what an attempt did that has ended."""
        finished_record, session = attempt.stream.finished_record, attempt.session
        if finished_record is not None:
            self.finished += 1
            self.status_counts[finished_record.status.value] += 1
            if finished_record.limit is not RolloutLimit.NONE:
                self.limits[finished_record.limit.value] += 1
        self.close_failures += attempt.close_failure is not None
        self.turns += session.turns_done
        self.tokens += session.sampled_tokens
        self.images += session.image_count
        self.queue_bytes += attempt.stream.byte_count
        self.prompt_sources.update(session.prompt_sources)


class Worker:
    """Plays rollouts of one environment with one policy."""

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
        self.counters = WorkerCounters()
        self.draining = False
        self._config = config
        self._policy = policy
        self._metadata = metadata
        self._claims = claims
        self._tasks_queue = tasks_queue
        self._trajectories_queue = trajectories_queue
        self._shared_resources = shared_resources
        self._attempts_in_flight: set[Attempt] = set()
        self._interrupted_attempts: list[Attempt] = []
        self._failures_in_a_row = 0
        self._retry_reasons: dict[str, str] = {}
        self._accept_scope = anyio.CancelScope()
        self._free_slots = anyio.Semaphore(config.worker.concurrency)
        # If one of the rollouts in flight kills workers, only that one uses up its attempts, and no other one.
        self._quarantine_lock = SharedLock()
        self._deadline_enforcer = DeadlineEnforcer(claims, config.policy, config.worker.turn_timeout)

    async def run(self) -> None:
        """Play until drained or cancelled.

        Raises:
            WorkerHalted: the infrastructure failed too often in a row.
            ClaimsError, QueueError: the run's directory or a queue cannot be used.
        """
        async with anyio.create_task_group() as watch_group:
            watch_group.start_soon(self._deadline_enforcer.watch, self._attempts_in_flight)
            async with anyio.create_task_group() as play_group:
                with self._accept_scope:
                    while True:
                        await self._acquire_slot()
                        if (delivery := await self._tasks_queue.receive(timeout=_POLL_INTERVAL)) is None:
                            self._free_slots.release()
                        else:
                            play_group.start_soon(self._handle_order, delivery)
            watch_group.cancel_scope.cancel()

    def drain(self) -> None:
        """Accept nothing more; `run` returns once everything in flight is done."""
        self.draining = True
        self._accept_scope.cancel()

    def advance_version(self, version: str | None) -> None:
        """Take over the trainer's policy version from the supervisor or from an order; a number never falls."""
        current = self._policy.version.current
        if version is not None and not (version.isdigit() and current.isdigit() and int(version) < int(current)):
            self._policy.version.current = version

    def require_version(self, version: str | None) -> None:
        """Use no engine with weights older than those that the trainer pushed.

        The version may also fall, because a trainer may go back to an earlier one.
        """
        self._policy.version.required = version
        if version is not None:
            self._policy.version.current = version

    async def abandon_interrupted(self) -> None:
        """After `run` was cancelled: end what was in flight as abandoned, because nobody will play it again."""
        for attempt in self._interrupted_attempts:
            if attempt.stream.finished_record is None:
                await attempt.finish_without_playing(RolloutAbandoned("the run was stopped"))
            self.counters.add(attempt)

    async def _acquire_slot(self) -> None:
        """Wait until another rollout may start, and take its slot."""
        await self._free_slots.acquire()
        token_limit = self._config.worker.tokens_in_flight
        while token_limit is not None and self._estimate_tokens_in_flight(token_limit) >= token_limit:  # noqa: ASYNC110 - any turn may change it
            await anyio.sleep(_POLL_INTERVAL)
        with self._policy.metrics.time_admission():
            await self._trajectories_queue.admit()

    def _estimate_tokens_in_flight(self, token_limit: int) -> float:
        """Estimate the tokens of the rollouts in flight.

        One that made no request yet counts as the average of those that did. While none did, each counts as
        `token_limit`, so that a first rollout is played alone.
        """
        known_tokens = [tokens for attempt in self._attempts_in_flight if (tokens := attempt.session.context_tokens)]
        attempts_in_flight = self._config.worker.concurrency - self._free_slots.value - 1
        average_tokens = sum(known_tokens) / len(known_tokens) if known_tokens else token_limit
        return sum(known_tokens) + average_tokens * (attempts_in_flight - len(known_tokens))

    async def _handle_order(self, delivery: Delivery) -> None:
        try:
            order = decode_order(delivery.frames)
            await self._play_until_finished(order)
            await delivery.ack()
        except OrderError as error:
            log.error("order refused", tag=delivery.tag, error=str(error))
            await delivery.reject(str(error))
        except StaleLease:
            # This process stood still for so long that others took over. The attempt that finishes first wins.
            log.warning("the lease of an order had lapsed", tag=delivery.tag)
        finally:
            self._free_slots.release()

    async def _play_until_finished(self, order: RolloutOrder) -> None:
        """Play attempts until the rollout has its one finished record."""
        if await anyio.to_thread.run_sync(self._claims.is_done, order.rollout_id):
            return
        while True:
            history = await anyio.to_thread.run_sync(self._claims.attempt_history, order.rollout_id)
            is_last_attempt = history.attempts_used == self._config.worker.max_attempts - 1
            async with (
                self._quarantine_lock.exclusive()
                if is_last_attempt and history.unreported_attempts
                else self._quarantine_lock.shared()
            ):
                if await self._claim_and_play(order):
                    return
            await anyio.sleep(_RETRY_PAUSE_SECONDS)

    async def _claim_and_play(self, order: RolloutOrder) -> bool:
        """Play one attempt, and return whether the rollout is done."""
        with anyio.CancelScope(shield=True):  # after a claim, the attempt is played or the claim is returned
            claim = await anyio.to_thread.run_sync(self._claims.claim_next_attempt, order.rollout_id)
        self.advance_version(order.policy_version)
        metadata = replace(self._metadata, policy_version=self._policy.version.current)
        attempt = Attempt(order, claim.attempt_number, self._policy, metadata, self._trajectories_queue)
        retries = min(claim.attempts_used, self._config.worker.max_attempts) - 1
        if retries == claim.attempts_used - 1 > 0:
            self.counters.retries += 1
        try:
            await self._play_attempt(attempt, claim)
        except anyio.get_cancelled_exc_class():
            self._interrupted_attempts.append(attempt)
            await self._return_claim(claim)
            raise
        except QueueError:
            await self._return_claim(claim)
            raise
        if attempt.stream.finished_record is None:
            await anyio.to_thread.run_sync(self._claims.mark_failed, claim)
            return False
        self.counters.add(attempt)
        outcome = _make_outcome(attempt, retries, self._retry_reasons.pop(order.rollout_id, None))
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._claims.record_outcome, outcome)
        return True

    async def _play_attempt(self, attempt: Attempt, claim: Claim) -> None:
        max_attempts = self._config.worker.max_attempts
        if claim.attempts_used > max_attempts:
            exhausted = AttemptsExhausted(
                f"{max_attempts} attempts were begun (worker.max_attempts) and none came to an end: did their workers "
                "die?"
            )
            await attempt.finish_without_playing(exhausted)
            return
        if (abandon_reason := await self._deadline_enforcer.reason_to_abandon(attempt.order)) is not None:
            await attempt.finish_without_playing(abandon_reason)
            return
        self._attempts_in_flight.add(attempt)
        self.counters.in_flight += 1
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
            self.counters.retry_reason = self._retry_reasons[claim.rollout_id] = shorten_line(reason)
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
            self.counters.in_flight -= 1

    def _new_environment(self) -> Environment:
        environment = self._config.new_environment()
        environment.shared_resources = self._shared_resources
        return environment

    async def _halt_if_too_many_failures(self, error: RolloutError, claim: Claim) -> None:
        self._failures_in_a_row = failures = self._failures_in_a_row + 1
        if failures >= self._config.worker.halt_after:
            await self._return_claim(claim)
            raise WorkerHalted(
                f"{failures} infrastructure failures in a row (worker.halt_after), the last one: {error}"
            ) from error

    async def _return_claim(self, claim: Claim) -> None:
        with anyio.move_on_after(_FINAL_WRITE_TIMEOUT, shield=True):
            await anyio.to_thread.run_sync(self._claims.mark_returned, claim)


def _make_outcome(attempt: Attempt, retries: int, retry_reason: str | None) -> Outcome:
    finished_record, session = attempt.stream.finished_record, attempt.session
    assert finished_record is not None
    return Outcome(
        rollout=attempt.order.rollout_id,
        group=attempt.order.task.id,
        attempt=attempt.stream.attempt_id.attempt,
        status=finished_record.status.value,
        limit=finished_record.limit.value,
        reward=finished_record.reward,
        rewards={name: reward.value for name, reward in finished_record.rewards.items()},
        turns=session.turns_done,
        images=session.image_count,
        tokens=session.sampled_tokens,
        error=dict(finished_record.error) if finished_record.error is not None else None,
        traceback=attempt.failure.traceback if attempt.failure is not None else None,
        metrics=dict(finished_record.metrics),
        retries=retries,
        close_failed=attempt.close_failure is not None,
        retry_reason=retry_reason,
    )
