"""A worker: leases orders, plays each as one rollout, and settles an order once its finished record is accepted.

One failed rollout never ends another one. An attempt that the infrastructure failed is followed by another one with a
fresh environment; so many such failures in a row end the worker with that error, before it burns every task. An order
that the worker did not finish, for whatever reason, is not acked, and comes again, here or elsewhere.
"""

import traceback
from collections import Counter
from dataclasses import dataclass, field, replace

import anyio
import anyio.to_thread
import structlog

from rollout.config.load import Config
from rollout.errors import RolloutError
from rollout.rundir.claims import Claim, Claims, Outcome
from rollout.session.session import Policy
from rollout.tasks.orders import RolloutOrder, TaskError, decode_order
from rollout.worker.attempt import Attempt, RolloutAbandoned, RunFacts
from rollout.worker.deadlines import Deadlines
from rollout.worker.quarantine import Seclusion
from transports import Delivery, Queue, QueueError, StaleLease

log = structlog.get_logger()

_POLL = 0.2
_LAST_WORDS = 5.0
"""Seconds that a cancelled worker has for each thing that it must still write down."""
_RETRY_PAUSE = 0.5
_TRACEBACK_LIMIT = 20_000


class AttemptsExhausted(RolloutError):
    """A rollout was begun as often as it may be, and never came to its end."""


class WorkerHalted(RolloutError):
    """The infrastructure failed one rollout after another; going on would only burn their attempts."""


@dataclass(slots=True)
class WorkerCounters:
    """What a worker did so far."""

    in_flight: int = 0
    finished: int = 0
    status: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    tokens: int = 0
    images: int = 0
    retries: int = 0
    queue_bytes: int = 0
    prompt_sources: Counter[str] = field(default_factory=Counter)

    def add(self, attempt: Attempt) -> None:
        """Count an attempt that has ended."""
        final, session = attempt.stream.final, attempt.session
        if final is not None:
            self.finished += 1
            self.status[final.status.value] += 1
        self.turns += session.turns_done
        self.tokens += session.sampled_tokens
        self.images += session.images_seen
        self.queue_bytes += attempt.stream.bytes
        self.prompt_sources.update(session.prompt_sources)


class Worker:
    """Plays rollouts of one environment with one policy."""

    def __init__(
        self, config: Config, policy: Policy, facts: RunFacts, claims: Claims, tasks: Queue, trajectories: Queue
    ) -> None:
        self.counters = WorkerCounters()
        self.draining = False
        self._config = config
        self._policy = policy
        self._facts = facts
        self._claims = claims
        self._tasks = tasks
        self._trajectories = trajectories
        self._playing: set[Attempt] = set()
        self._interrupted: list[Attempt] = []
        self._failures_in_a_row = 0
        self._accepting = anyio.CancelScope()
        self._slots = anyio.Semaphore(config.worker.concurrency)
        # If what kills workers is one of those in flight, then it alone is out of attempts, and none that was there.
        self._seclusion = Seclusion()
        self._deadlines = Deadlines(claims, config.policy, config.worker.turn_timeout)

    async def run(self) -> None:
        """Play until drained or cancelled.

        Raises:
            WorkerHalted: the infrastructure failed too often in a row.
            ClaimsError, QueueError: the run's directory or a queue cannot be used.
        """
        async with anyio.create_task_group() as watching:
            watching.start_soon(self._deadlines.watch, self._playing)
            async with anyio.create_task_group() as playing:
                with self._accepting:
                    while True:
                        await self._room()
                        if (delivery := await self._tasks.receive(timeout=_POLL)) is None:
                            self._slots.release()
                        else:
                            playing.start_soon(self._settle, delivery)
            watching.cancel_scope.cancel()

    def drain(self) -> None:
        """Accept nothing more; `run` returns once everything in flight is done."""
        self.draining = True
        self._accepting.cancel()

    def learn_version(self, version: str | None) -> None:
        """Take note of the trainer's policy version, as a launch or an order tells it; versions only rise."""
        known = self._policy.version.current
        if version is not None and not (version.isdigit() and known.isdigit() and int(version) < int(known)):
            self._policy.version.current = version

    def require_version(self, version: str | None) -> None:
        """Use no engine with older weights than the trainer pushed; it may have gone back to an earlier version."""
        self._policy.version.required = version
        if version is not None:
            self._policy.version.current = version

    async def abandon(self) -> None:
        """After `run` was cancelled: end what was in flight as abandoned, because nobody will play it again."""
        for attempt in self._interrupted:
            if attempt.stream.final is None:
                await attempt.give_up(RolloutAbandoned("the run was stopped"))
            self.counters.add(attempt)

    async def _room(self) -> None:
        """Return with a slot, once another rollout may start."""
        await self._slots.acquire()
        limit = self._config.worker.tokens_in_flight
        while limit is not None and self._tokens(limit) >= limit:  # noqa: ASYNC110 - any turn may change it
            await anyio.sleep(_POLL)
        with self._policy.metrics.admission():
            await self._trajectories.admit()

    def _tokens(self, limit: int) -> float:
        """What those in flight hold. One that has not asked yet counts as those that have; a first one goes alone."""
        asked = [tokens for attempt in self._playing if (tokens := attempt.session.context_tokens)]
        in_flight = self._config.worker.concurrency - self._slots.value - 1
        usual = sum(asked) / len(asked) if asked else limit
        return sum(asked) + usual * (in_flight - len(asked))

    async def _settle(self, delivery: Delivery) -> None:
        try:
            order = decode_order(delivery.frames)
            await self._see_to(order)
            await delivery.ack()
        except TaskError as error:
            log.error("order refused", tag=delivery.tag, error=str(error))
            await delivery.reject(str(error))
        except StaleLease:
            # This process stood still for so long that others took over; the first finished attempt wins.
            log.warning("the lease of an order had lapsed", tag=delivery.tag)
        finally:
            self._slots.release()

    async def _see_to(self, order: RolloutOrder) -> None:
        """Attempt it until it has its one finished record."""
        if await anyio.to_thread.run_sync(self._claims.is_done, order.rollout):
            return
        while True:
            past = await anyio.to_thread.run_sync(self._claims.past, order.rollout)
            last = past.spent == self._config.worker.max_attempts - 1
            async with self._seclusion.alone() if last and past.unheard else self._seclusion.together():
                if await self._attempt(order):
                    return
            self.counters.retries += 1
            await anyio.sleep(_RETRY_PAUSE)

    async def _attempt(self, order: RolloutOrder) -> bool:
        """Play one attempt; whether the rollout is done."""
        with anyio.CancelScope(shield=True):  # a claim that was made is played, or handed back
            claim = await anyio.to_thread.run_sync(self._claims.begin, order.rollout)
        self.learn_version(order.policy_version)
        facts = replace(self._facts, policy_version=self._policy.version.current)
        attempt = Attempt(order, claim.number, self._policy, facts, self._trajectories)
        try:
            await self._play(attempt, claim)
        except anyio.get_cancelled_exc_class():
            self._interrupted.append(attempt)
            await self._hand_back(claim)
            raise
        except QueueError:
            await self._hand_back(claim)
            raise
        if attempt.stream.final is None:
            await anyio.to_thread.run_sync(self._claims.fail, claim)
            return False
        self.counters.add(attempt)
        outcome = _outcome(attempt)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._claims.finish, outcome)
        return True

    async def _play(self, attempt: Attempt, claim: Claim) -> None:
        limit = self._config.worker.max_attempts
        if claim.spent > limit:
            told = f"{limit} attempts were begun (worker.max_attempts) and none came to an end: did their workers die?"
            await attempt.give_up(AttemptsExhausted(told))
            return
        if (unwanted := await self._deadlines.unwanted(attempt.order)) is not None:
            await attempt.give_up(unwanted)
            return
        self._playing.add(attempt)
        self.counters.in_flight += 1
        try:
            await attempt.play(self._config.new_environment, timeout=self._config.worker.rollout_timeout)
        except RolloutError as error:
            log.warning("the infrastructure failed", rollout=claim.rollout, attempt=claim.number, error=str(error))
            await self._note_failure(error, claim)
            if claim.spent == limit:
                await attempt.give_up(error)
        else:
            self._failures_in_a_row = 0
        finally:
            self._playing.discard(attempt)
            self.counters.in_flight -= 1

    async def _note_failure(self, error: RolloutError, claim: Claim) -> None:
        self._failures_in_a_row = failures = self._failures_in_a_row + 1
        if failures >= self._config.worker.halt_after:
            await self._hand_back(claim)
            raise WorkerHalted(
                f"{failures} infrastructure failures in a row (worker.halt_after), the last one: {error}"
            ) from error

    async def _hand_back(self, claim: Claim) -> None:
        with anyio.move_on_after(_LAST_WORDS, shield=True):
            await anyio.to_thread.run_sync(self._claims.hand_back, claim)


def _outcome(attempt: Attempt) -> Outcome:
    final, session = attempt.stream.final, attempt.session
    assert final is not None
    return Outcome(
        rollout=attempt.order.rollout,
        group=attempt.order.task.id,
        attempt=attempt.stream.identity.attempt,
        status=final.status.value,
        reward=final.reward,
        turns=session.turns_done,
        images=session.images_seen,
        tokens=session.sampled_tokens,
        error=dict(final.error) if final.error is not None else None,
        traceback=_told_of(attempt.error) if attempt.error is not None else None,
        metrics=dict(final.metrics),
    )


def _told_of(error: BaseException) -> str | None:
    """Its traceback, from the environment's own frames on, and of what is endless the end."""
    if error.__traceback__ is None:
        return None
    return "".join(traceback.format_exception(type(error), error, error.__traceback__.tb_next))[-_TRACEBACK_LIMIT:]
