"""Ends rollouts that complete no turn for too long, stragglers, and rollouts of a group that has failed.

The run's claims say how the other rollouts of a group ended, so other workers may have played them. `Attempt.play`
enforces the time limit of a whole rollout (`worker.rollout_timeout`).
"""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
import structlog

from rollout.config.sections import PolicyConfig
from rollout.records.endings import RolloutStatus
from rollout.rundir.claims import Claims, Outcome
from rollout.tasks.orders import RolloutOrder
from rollout.worker.attempt import Attempt, RolloutAbandoned, RolloutTimeout, StragglerCut

log = structlog.get_logger()

_CHECK_INTERVAL = 1.0


@dataclass(slots=True)
class _TurnProgress:
    """The number of turns that a rollout has completed, and the time when this number last rose."""

    turns: int
    last_moved: float


@dataclass(slots=True)
class _GroupOutcomes:
    """The outcomes of a group's rollouts by rollout id, and the time when half of them were done (None before that)."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    half_done_since: float | None = None


class DeadlineEnforcer:
    """Ends rollouts of one worker as `worker.turn_timeout` and the `policy` section of the configuration say."""

    def __init__(self, claims: Claims, policy: PolicyConfig, turn_timeout: float) -> None:
        self._claims = claims
        self._policy = policy
        self._turn_timeout = turn_timeout
        self._checks_groups = policy.stragglers != "finish" or policy.partial_groups == "cancel"
        self._turn_progress: dict[Attempt, _TurnProgress] = {}
        self._group_outcomes: dict[str, _GroupOutcomes] = {}

    async def watch(self, attempts_in_flight: Collection[Attempt]) -> None:
        """Once a second until cancelled, check all attempts, and stop those that must end."""
        while True:
            await anyio.sleep(_CHECK_INTERVAL)
            attempts = list(attempts_in_flight)
            self._stop_stalled_attempts(attempts)
            if self._checks_groups:
                await self._check_groups(attempts)

    async def reason_to_abandon(self, order: RolloutOrder) -> RolloutAbandoned | None:
        """Return the reason not to start a rollout, if another rollout of its group has failed; otherwise None."""
        if self._policy.partial_groups != "cancel":
            return None
        outcomes = await anyio.to_thread.run_sync(
            lambda: [self._claims.outcome(rollout_id) for rollout_id in order.group_rollout_ids]
        )
        return _abandon_if_group_failed(outcome for outcome in outcomes if outcome is not None)

    def _stop_stalled_attempts(self, attempts: list[Attempt]) -> None:
        now = time.monotonic()
        previous = {attempt: self._turn_progress.get(attempt) for attempt in attempts}
        self._turn_progress = {
            attempt: progress
            if progress and progress.turns == len(attempt.session.played_turns)
            else _TurnProgress(len(attempt.session.played_turns), now)
            for attempt, progress in previous.items()
        }
        for attempt, progress in self._turn_progress.items():
            if now - progress.last_moved > self._turn_timeout:
                message = (
                    f"the rollout completed no turn for {self._turn_timeout:g} s (worker.turn_timeout); "
                    f"it had completed {progress.turns} turns before"
                )
                attempt.stop(RolloutTimeout(message))

    async def _check_groups(self, attempts: list[Attempt]) -> None:
        self._group_outcomes = {
            a.order.task.id: self._group_outcomes.get(a.order.task.id, _GroupOutcomes()) for a in attempts
        }
        orders = {attempt.order.task.id: attempt.order for attempt in attempts}
        await anyio.to_thread.run_sync(self._load_new_outcomes, orders)
        now = time.monotonic()
        for attempt in attempts:
            group_outcomes = self._group_outcomes[attempt.order.task.id]
            if (
                self._policy.partial_groups == "cancel"
                and (abandon_reason := _abandon_if_group_failed(group_outcomes.outcomes.values())) is not None
            ):
                attempt.stop(abandon_reason)
            elif (
                group_outcomes.half_done_since is not None
                and now - group_outcomes.half_done_since > self._policy.straggler_grace
            ):
                self._stop_straggler(attempt)

    def _stop_straggler(self, attempt: Attempt) -> None:
        message = (
            f"the rollout did not end within {self._policy.straggler_grace:g} s after half of its group was done "
            "(policy.stragglers)"
        )
        if self._policy.stragglers == "cut":
            attempt.stop(StragglerCut(message))
        elif self._policy.stragglers == "abandon":
            attempt.stop(RolloutAbandoned(message))

    def _load_new_outcomes(self, orders: dict[str, RolloutOrder]) -> None:
        for task_id, order in orders.items():
            group_outcomes = self._group_outcomes[task_id]
            for rollout_id in order.group_rollout_ids:
                outcome = None if rollout_id in group_outcomes.outcomes else self._claims.outcome(rollout_id)
                if outcome is not None:
                    group_outcomes.outcomes[rollout_id] = outcome
            if group_outcomes.half_done_since is None and 2 * len(group_outcomes.outcomes) >= order.group_size > 1:
                group_outcomes.half_done_since = time.monotonic()


def _abandon_if_group_failed(outcomes: Iterable[Outcome]) -> RolloutAbandoned | None:
    failed = next((outcome for outcome in outcomes if outcome.status == RolloutStatus.FAILED), None)
    if failed is None:
        return None
    return RolloutAbandoned(f"rollout {failed.rollout} of the same group failed (policy.partial_groups)")
