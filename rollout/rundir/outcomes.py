"""Computes totals over the outcomes of rollouts.

A worker adds the outcomes of its own rollouts. A launch reads all outcomes of the run from the claims. Therefore the
launch's totals stay exact when processes are killed. They include earlier launches, and workers on other machines.
"""

import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rollout.records.endings import RolloutLimit
from rollout.records.gateway_counts import add_gateway_counts, report_gateway
from rollout.records.prompt_counts import report_prompts
from rollout.rundir.claims import Claims, Outcome

_PAUSE_FACTOR = 20
"""Spend at most 1/20 of the time reading claims."""
_MAX_DISTINCT_ERRORS = 1000
"""The limit for each status. Later errors are not kept, because many different messages would fill the memory."""
_FRAME_PATTERN = re.compile(r'^[ |]*File "(.*)$', re.MULTILINE)
"""Matches the line of a traceback that contains the file and the line number of a frame."""


@dataclass(slots=True)
class DistinctError:
    """An error with which one or more rollouts ended. The same message from other lines of code is another error.

    Attributes:
        status: the status of these rollouts, such as failed.
        type: the type of the error.
        message: the message of the error.
        rollouts: the number of rollouts that ended with this error.
        first_rollout: the rollout with this error whose name sorts first.
        traceback: the traceback of the error in this rollout; None if there is none.
    """

    status: str
    type: str
    message: str
    rollouts: int
    first_rollout: str
    traceback: str | None


class ErrorTotals:
    """Counts the rollouts that ended with each error.

    Attributes:
        rollouts: the total number of rollouts that ended with an error.
    """

    def __init__(self) -> None:
        self.rollouts = 0
        self._by_key: dict[tuple[str, ...], DistinctError] = {}
        self._counts_by_status: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        """Count the error of a rollout."""
        self.rollouts += 1
        error, traceback = outcome.error or {}, outcome.traceback
        error_type, message = str(error.get("type")), str(error.get("message"))
        key = (outcome.status, error_type, message, *_FRAME_PATTERN.findall(traceback or ""))
        known = self._by_key.get(key)
        if known is None:
            self._counts_by_status[outcome.status] += 1
            if self._counts_by_status[outcome.status] <= _MAX_DISTINCT_ERRORS:
                self._by_key[key] = DistinctError(outcome.status, error_type, message, 1, outcome.rollout, traceback)
            return
        known.rollouts += 1
        if outcome.rollout < known.first_rollout:
            known.first_rollout, known.traceback = outcome.rollout, traceback

    def distinct(self) -> list[DistinctError]:
        """Return every error once, sorted by `first_rollout`."""
        return sorted(self._by_key.values(), key=lambda error: error.first_rollout)


@dataclass(slots=True)
class _Mean:
    """Computes the mean of many numbers with Neumaier's summation, which avoids the rounding errors of a plain sum."""

    count: int = 0
    total: float = 0.0
    rest: float = 0.0

    def add(self, number: float) -> None:
        self.count += 1
        total = self.total + number
        larger, smaller = (self.total, number) if abs(self.total) >= abs(number) else (number, self.total)
        self.rest += (larger - total) + smaller
        self.total = total

    @property
    def value(self) -> float:
        return (self.total + self.rest) / self.count


_Means = defaultdict[str, _Mean]


@dataclass(slots=True)
class OutcomeTotals:
    """The totals of outcomes.

    Attributes:
        rollouts: the number of rollouts that ended.
        status_counts: the number of rollouts that ended with each status.
        limits: the number of rollouts that each limit stopped.
        turns: the number of turns of these rollouts.
        images: the number of different images in each rollout, summed over the rollouts.
        tokens: the number of tokens that the policy sampled.
        queue_bytes: the size of the rollouts' records in bytes.
        retries: the number of repeated attempts, see `Outcome.retries`.
        request_retries: the number of repeated requests, see `Outcome.request_retries`.
        retry_reason: the latest reason why an environment asked for another attempt; None if none did.
        close_failures: the number of environments that could not be closed.
        errors: the errors of the rollouts.
        reward: the mean of the rewards.
        named_rewards: the mean of each named reward, by name.
        metrics: the mean of each metric of the scores, by name.
        gateway: what happened in the gateway, see `rollout.records.gateway_counts.GatewayCount`.
        prompts: the number of turns by how their prompt was made, with the values of `PromptSource`.
    """

    rollouts: int = 0
    status_counts: Counter[str] = field(default_factory=Counter)
    limits: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    images: int = 0
    tokens: int = 0
    queue_bytes: int = 0
    retries: int = 0
    request_retries: int = 0
    retry_reason: str | None = None
    close_failures: int = 0
    errors: ErrorTotals = field(default_factory=ErrorTotals)
    reward: _Mean = field(default_factory=_Mean)
    named_rewards: _Means = field(default_factory=lambda: defaultdict(_Mean))
    metrics: _Means = field(default_factory=lambda: defaultdict(_Mean))
    gateway: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def reward_mean(self) -> float | None:
        """The mean of the rewards; None if no rollout has a reward."""
        return self.reward.value if self.reward.count else None

    def add(self, outcome: Outcome) -> None:
        """Add the outcome of a rollout. Any thread may call this method."""
        with self._lock:
            self._add(outcome)

    def _add(self, outcome: Outcome) -> None:
        self.rollouts += 1
        self.status_counts[outcome.status] += 1
        if outcome.limit != RolloutLimit.NONE:
            self.limits[outcome.limit] += 1
        self.turns += outcome.turns
        self.images += outcome.images
        self.tokens += outcome.tokens
        self.queue_bytes += outcome.queue_bytes
        self.retries += outcome.retries
        self.request_retries += outcome.request_retries
        self.retry_reason = outcome.retry_reason or self.retry_reason
        self.close_failures += outcome.close_failed
        add_gateway_counts(self.gateway, outcome.gateway)
        self.prompts.update(outcome.prompts)
        if outcome.error is not None:
            self.errors.add(outcome)
        if outcome.reward is not None:
            self.reward.add(outcome.reward)
        for means, values in ((self.named_rewards, outcome.rewards), (self.metrics, outcome.metrics)):
            for name, value in values.items():
                means[name].add(value)

    def report(self) -> dict[str, Any]:
        """Return the totals as JSON-like data, in the form of the option `--json`. Any thread may call this method."""
        with self._lock:
            return self._report()

    def _report(self) -> dict[str, Any]:
        return {
            "rollouts": self.rollouts,
            "status": dict(self.status_counts),
            "reward_mean": self.reward_mean,
            "rewards": {name: mean.value for name, mean in sorted(self.named_rewards.items())},
            "metrics": {name: mean.value for name, mean in sorted(self.metrics.items())},
            "turns": self.turns,
            "images": self.images,
            "tokens": self.tokens,
            "queue_bytes": self.queue_bytes,
            "retries": self.retries,
            "request_retries": self.request_retries,
            "retry_reason": self.retry_reason,
            "close_failures": self.close_failures,
            "limits": dict(self.limits),
            "prompts": report_prompts(self.prompts),
            "gateway": report_gateway(self.gateway),
        }


class RunOutcomes:
    """Keeps the totals of a run up to date. It reads the outcomes from the run's claims, each outcome once.

    Attributes:
        totals: the totals of the whole run. In its errors, a rollout's name is `ENVIRONMENT/ROLLOUT`.
        by_environment: the totals of each environment, by the environment's name.
    """

    def __init__(self, claims_by_environment: Mapping[str, Claims]) -> None:
        self.totals = OutcomeTotals()
        self.by_environment = {name: OutcomeTotals() for name in claims_by_environment}
        self._claims_by_environment = claims_by_environment
        self._seen_names: dict[str, set[str]] = {name: set() for name in claims_by_environment}
        self._next_refresh = 0.0
        self._refresh_lock = threading.Lock()

    def refresh(self, *, at_once: bool = False) -> None:
        """Add the rollouts that ended since the last call. Any thread may call this method.

        A call soon after the last one does nothing, unless `at_once` is set.
        """
        with self._refresh_lock:
            started = time.monotonic()
            if started < self._next_refresh and not at_once:
                return
            for name, claims in self._claims_by_environment.items():
                for outcome in claims.new_outcomes(self._seen_names[name]):
                    self.by_environment[name].add(outcome)
                    self.totals.add(replace(outcome, rollout=f"{name}/{outcome.rollout}"))
            now = time.monotonic()
            self._next_refresh = now + _PAUSE_FACTOR * (now - started)
