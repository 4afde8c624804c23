"""Watches over the rollouts in flight: one that stands still, and one that the rest of its group waits for.

It reads what the others of a group have come to from the run's claims, so that it does not matter whose workers play
them.
"""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
import structlog

from rollout.config.sections import PolicyConfig
from rollout.records.wire import RolloutStatus
from rollout.rundir.claims import Claims, Outcome
from rollout.tasks.orders import RolloutOrder
from rollout.worker.attempt import Attempt, RolloutAbandoned, RolloutTimeout, StragglerCut

log = structlog.get_logger()

_LOOK = 1.0


@dataclass(slots=True)
class _Pace:
    """How far a rollout had come when it was last seen to move."""

    turns: int
    since: float


@dataclass(slots=True)
class _Group:
    """What is known of the others of a group."""

    done: dict[str, Outcome] = field(default_factory=dict)
    half_since: float | None = None


class Deadlines:
    """Ends rollouts of one worker as `worker.turn_timeout` and the `policy` section say."""

    def __init__(self, claims: Claims, policy: PolicyConfig, turn_timeout: float) -> None:
        self._claims = claims
        self._policy = policy
        self._turn_timeout = turn_timeout
        self._looks_at_groups = policy.stragglers != "finish" or policy.partial_groups == "cancel"
        self._paces: dict[Attempt, _Pace] = {}
        self._groups: dict[str, _Group] = {}

    async def watch(self, playing: Collection[Attempt]) -> None:
        """Look at them, once a second, until cancelled."""
        while True:
            await anyio.sleep(_LOOK)
            attempts = list(playing)
            self._end_standing_still(attempts)
            if self._looks_at_groups:
                await self._look_at_groups(attempts)

    async def unwanted(self, order: RolloutOrder) -> RolloutAbandoned | None:
        """Why a rollout that is about to begin should not, if its group is lost already."""
        if self._policy.partial_groups != "cancel":
            return None
        outcomes = await anyio.to_thread.run_sync(lambda: [self._claims.outcome(rollout) for rollout in order.group])
        return _lost(outcome for outcome in outcomes if outcome is not None)

    def _end_standing_still(self, attempts: list[Attempt]) -> None:
        now = time.monotonic()
        kept = {attempt: self._paces.get(attempt) for attempt in attempts}
        self._paces = {
            attempt: pace
            if pace and pace.turns == attempt.session.turns_done
            else _Pace(attempt.session.turns_done, now)
            for attempt, pace in kept.items()
        }
        for attempt, pace in self._paces.items():
            if now - pace.since > self._turn_timeout:
                told = f"no turn was done for {self._turn_timeout:g} s (worker.turn_timeout), after {pace.turns} turns"
                attempt.stop(RolloutTimeout(told))

    async def _look_at_groups(self, attempts: list[Attempt]) -> None:
        self._groups = {a.order.task.id: self._groups.get(a.order.task.id, _Group()) for a in attempts}
        orders = {attempt.order.task.id: attempt.order for attempt in attempts}
        await anyio.to_thread.run_sync(self._learn, orders)
        now = time.monotonic()
        for attempt in attempts:
            group = self._groups[attempt.order.task.id]
            if self._policy.partial_groups == "cancel" and (lost := _lost(group.done.values())) is not None:
                attempt.stop(lost)
            elif group.half_since is not None and now - group.half_since > self._policy.straggler_grace:
                self._end_straggler(attempt)

    def _end_straggler(self, attempt: Attempt) -> None:
        told = f"half of its group was done {self._policy.straggler_grace:g} s ago (policy.stragglers)"
        if self._policy.stragglers == "cut":
            attempt.stop(StragglerCut(told))
        elif self._policy.stragglers == "abandon":
            attempt.stop(RolloutAbandoned(told))

    def _learn(self, orders: dict[str, RolloutOrder]) -> None:
        for task, order in orders.items():
            group = self._groups[task]
            for rollout in order.group:
                outcome = None if rollout in group.done else self._claims.outcome(rollout)
                if outcome is not None:
                    group.done[rollout] = outcome
            if group.half_since is None and 2 * len(group.done) >= order.group_size > 1:
                group.half_since = time.monotonic()


def _lost(done: Iterable[Outcome]) -> RolloutAbandoned | None:
    failed = next((outcome for outcome in done if outcome.status == RolloutStatus.FAILED), None)
    if failed is None:
        return None
    return RolloutAbandoned(f"{failed.rollout} of its group failed (policy.partial_groups)")
