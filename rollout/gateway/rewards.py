"""Reads the reward that a program sends with `POST …/reward`.

{"reward": 1.0}
{"rewards": {"tests": 1.0, "style": 0.5}, "metrics": {"files": 3}}
0.5
"""

import math
from collections.abc import Mapping
from typing import Any

import orjson

from rollout.api_keys import hide_keys_in_json
from rollout.environments.endpoint import PostedReward
from rollout.gateway.dialects.base import RefusalReason, RequestRefused
from rollout.records.bounds import MAX_REWARD

REWARD_PATHS = ("/v1/reward", "/reward")
"""The paths that take a reward: one below `base_url`, and one below `anthropic_base_url`."""
_MAX_NAMES = 100
_MAX_NAME_CHARS = 200
_EXPECTED = 'Send a number, {"reward": 1.0}, or {"rewards": {"NAME": 1.0}}; "metrics": {"NAME": 1.0} may be added.'
_KEYS = frozenset({"reward", "rewards", "metrics"})


def read_reward(body: bytes | bytearray) -> PostedReward:
    """Read the body of a request with a reward. Raises RequestRefused, which says what is expected."""
    try:
        value: Any = orjson.loads(hide_keys_in_json(bytes(body)))
    except orjson.JSONDecodeError:
        raise _refusal("The body is not valid JSON.") from None
    if not isinstance(value, dict):
        return PostedReward(_read_reward(value, "The body"), {}, {})
    if unknown := value.keys() - _KEYS:
        raise _refusal(f"The key {_show(min(unknown))} is unknown.")
    if ("reward" in value) == ("rewards" in value):
        raise _refusal("The body needs either reward or rewards, not both.")
    metrics = _read_numbers(value.get("metrics", {}), "metrics", math.inf)
    if "reward" in value:
        return PostedReward(_read_reward(value["reward"], "reward"), {}, metrics)
    rewards = _read_numbers(value["rewards"], "rewards", MAX_REWARD)
    if not rewards:
        raise _refusal("rewards is empty.")
    return PostedReward(None, rewards, metrics)


def reward_not_accepted() -> RequestRefused:
    """Return the refusal of a reward at an endpoint that takes none."""
    return RequestRefused(
        "This endpoint takes no reward. Its environment must open it with `model.endpoint(accept_reward=True)`.",
        reason=RefusalReason.NOT_FOUND,
    )


def _read_numbers(values: Any, key: str, limit: float) -> Mapping[str, float]:
    if not isinstance(values, dict):
        raise _refusal(f"{key} is not an object.", key)
    if len(values) > _MAX_NAMES:
        raise _refusal(f"{key} has {len(values):,} names; at most {_MAX_NAMES} are allowed.", key)
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if not 0 < len(name) <= _MAX_NAME_CHARS:
            raise _refusal(f"{key} has a name of {len(name):,} characters; 1 to {_MAX_NAME_CHARS} are allowed.", key)
        numbers[name] = _read_number(value, f"{key}[{_show(name)}]", limit)
    return numbers


def _read_reward(value: Any, place: str) -> float:
    return _read_number(value, place, MAX_REWARD)


def _read_number(value: Any, place: str, limit: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _refusal(f"{place} is {_show(value)}, and not a finite number.")
    if abs(value) > limit:
        raise _refusal(f"{place} is {value:g}; it must be from {-limit:g} to {limit:g}.")
    return float(value)


def _refusal(problem: str, parameter: str | None = None) -> RequestRefused:
    return RequestRefused(f"The reward cannot be used. {problem} {_EXPECTED}", parameter=parameter)


def _show(value: Any) -> str:
    return orjson.dumps(value).decode()[:60]
