"""What an environment returned, checked: a score becomes one with plain finite numbers, or the error says why not."""

import inspect
import math
from collections.abc import Mapping

from rollout.environments.base import Score
from rollout.records.bounds import MAX_REWARD
from rollout.records.wrong_types import describe_wrong_type, show_value
from rollout.texts import escape_surrogates
from rollout.worker.failures import ScoreError

_MAX_METRICS = 1000
_MAX_NAME_CHARS = 1000


def validate_score(score: object, method: str) -> Score:
    """Return the score that `method` returned, with plain numbers under plain names.

    Raises:
        ScoreError: it is no score, or one that cannot be recorded.
    """
    if not isinstance(score, Score):
        raise ScoreError(f"{method} returned {describe_wrong_type(score)}; write `return Score(reward=…)`")
    try:
        return Score(_validate_reward(score.reward), _validate_metrics(score.metrics))
    except ScoreError as error:
        raise ScoreError(f"{method} returned a Score that cannot be used: {error}") from None


def _validate_reward(value: object) -> float:
    reward = _require_finite_number("the reward", value)
    if abs(reward) > MAX_REWARD:
        raise ScoreError(f"the reward is {reward:g}; expected a number from {-MAX_REWARD:g} to {MAX_REWARD:g}")
    return reward


def _validate_metrics(metrics: object) -> dict[str, float]:
    if not isinstance(metrics, Mapping):
        raise ScoreError(f"the metrics are {describe_wrong_type(metrics)}; expected a mapping of names to numbers")
    numbers: dict[str, float] = {}
    for key, value in metrics.items():
        name = escape_surrogates(str(key))
        if len(name) > _MAX_NAME_CHARS:
            raise ScoreError(
                f"the metric {show_value(name)} has a name of {len(name):,} characters; at most "
                f"{_MAX_NAME_CHARS:,} are recorded"
            )
        if name not in numbers and len(numbers) == _MAX_METRICS:
            raise ScoreError(f"there are more than {_MAX_METRICS:,} metrics, which is the most that is recorded")
        numbers[name] = _require_finite_number(f"the metric {name!r}", value)
    return numbers


def _require_finite_number(name: str, value: object) -> float:
    """Accept anything that is one number, also a number of numpy or a tensor with one element."""
    if inspect.iscoroutine(value):
        raise ScoreError(f"{name} is {describe_wrong_type(value)}; expected a finite number")
    try:
        number = float(value)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - int raises OverflowError, torch RuntimeError, and others what they like
        number = math.nan
    if not math.isfinite(number):
        of_an_array = "; of an array with one element, give value.item()" if hasattr(value, "item") else ""
        raise ScoreError(f"{name} is {show_value(value)}; expected a finite number{of_an_array}")
    return number
