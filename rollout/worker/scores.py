"""Checks the score that an environment returned, and makes all of its numbers plain and finite."""

import inspect
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from rollout.api_keys import hide_keys
from rollout.environments.base import Score
from rollout.records.bounds import MAX_REWARD
from rollout.records.endings import RolloutLimit
from rollout.records.kinds import NamedReward
from rollout.records.wrong_types import describe_wrong_type, show_value
from rollout.texts import escape_surrogates
from rollout.worker.failures import ScoreError

_MAX_NAMES = 1000
_MAX_NAME_CHARS = 1000


@dataclass(frozen=True, slots=True)
class CheckedScore:
    """A checked score, as the finished record stores it; see `Score`.

    Attributes:
        reward: the reward that the trainer uses.
        metrics: further numbers by name.
        rewards: the named rewards with their weights.
        turn_rewards: the rewards of single answers, by the number of the turn.
        limit: the limit that stopped the rollout, as the environment reports it.
    """

    reward: float
    metrics: Mapping[str, float]
    rewards: Mapping[str, NamedReward]
    turn_rewards: Mapping[int, float]
    limit: RolloutLimit


def check_score(score: object, method: str, played_turns: Collection[int]) -> CheckedScore:
    """Check the value that `method` returned, and return it as a score with plain numbers and names.

    Args:
        score: the value that the method returned.
        method: the name of the method, for error messages.
        played_turns: the numbers of the turns that may have a reward.

    Raises:
        ScoreError: the value is not a score, or cannot be recorded.
    """
    if not isinstance(score, Score):
        raise ScoreError(f"{method} returned {describe_wrong_type(score)}; write `return Score(reward=…)`")
    try:
        rewards = _check_rewards(score)
        # The sum uses the recorded numbers, because the environment's own numbers may have fewer digits.
        reward = sum(named.value * named.weight for named in rewards.values()) if rewards else score.reward
        return CheckedScore(
            reward=_check_reward("the reward", reward),
            metrics=_check_named_numbers("metric", score.metrics, _require_finite_number),
            rewards=rewards,
            turn_rewards=_check_turn_rewards(score.turn_rewards, played_turns),
            limit=_check_limit(score.limit),
        )
    except ScoreError as error:
        raise ScoreError(f"{method} returned a Score that cannot be used: {error}") from None


def _check_reward(name: str, value: object) -> float:
    reward = _require_finite_number(name, value)
    if abs(reward) > MAX_REWARD:
        raise ScoreError(f"{name} is {reward:g}; expected a number from {-MAX_REWARD:g} to {MAX_REWARD:g}")
    return reward


def _check_rewards(score: Score) -> dict[str, NamedReward]:
    rewards = _check_named_numbers("reward", score.rewards, _check_reward)
    weights = _check_named_numbers("weight", score.weights, _check_reward)
    if unknown := weights.keys() - rewards.keys():
        raise ScoreError(f"there is a weight for {min(unknown)!r}, but no reward with this name")
    return {name: NamedReward(value, weights.get(name, 1.0)) for name, value in rewards.items()}


def _check_turn_rewards(turn_rewards: object, played_turns: Collection[int]) -> dict[int, float]:
    if not isinstance(turn_rewards, Mapping):
        raise ScoreError(f"turn_rewards is {describe_wrong_type(turn_rewards)}; expected {{reply.turn: number}}")
    rewards: dict[int, float] = {}
    for key, value in turn_rewards.items():
        turn = operator.index(key) if hasattr(key, "__index__") else None
        if turn is None or turn not in played_turns:
            raise ScoreError(
                f"turn_rewards has a reward for the turn {show_value(key)}, which was not played; write "
                "`turn_rewards={reply.turn: …}`"
            )
        rewards[turn] = _check_reward(f"the reward of turn {turn}", value)
    return rewards


def _check_limit(limit: object) -> RolloutLimit:
    try:
        return RolloutLimit(limit)  # type: ignore[arg-type]  # any other type raises ValueError
    except ValueError:
        limits = ", ".join(known.value for known in RolloutLimit)
        raise ScoreError(f"the limit is {show_value(limit)}; expected one of {limits}") from None


def _check_named_numbers(kind: str, values: object, check: Callable[[str, object], float]) -> dict[str, float]:
    if not isinstance(values, Mapping):
        raise ScoreError(f"the {kind}s are {describe_wrong_type(values)}; expected a mapping of names to numbers")
    numbers: dict[str, float] = {}
    for key, value in values.items():
        name = hide_keys(escape_surrogates(str(key)))
        if len(name) > _MAX_NAME_CHARS:
            raise ScoreError(
                f"the {kind} {show_value(name)} has a name of {len(name):,} characters; use at most "
                f"{_MAX_NAME_CHARS:,} characters"
            )
        if name in numbers:
            raise ScoreError(f"two {kind}s have the name {show_value(name)}")
        if len(numbers) == _MAX_NAMES:
            raise ScoreError(f"there are more than {_MAX_NAMES:,} {kind}s; return at most {_MAX_NAMES:,}")
        numbers[name] = check(f"the {kind} {name!r}", value)
    return numbers


def _require_finite_number(name: str, value: object) -> float:
    """Return the value as a float; numbers of numpy and tensors with one element are accepted too.

    Raises:
        ScoreError: the value is not a finite number.
    """
    if inspect.iscoroutine(value):
        raise ScoreError(f"{name} is {describe_wrong_type(value)}; expected a finite number")
    try:
        # A string such as "1.0" is refused, because the environment forgot to parse it.
        number = math.nan if isinstance(value, str | bytes) else float(value)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - a type may raise any error: int raises OverflowError, torch RuntimeError
        number = math.nan
    if not math.isfinite(number):
        of_an_array = "; for an array with one element, give value.item()" if hasattr(value, "item") else ""
        raise ScoreError(f"{name} is {show_value(value)}; expected a finite number{of_an_array}")
    return number
