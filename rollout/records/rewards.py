"""Encodes and decodes the rewards in a finished record: the named rewards, and the rewards of turns."""

import math
from collections.abc import Mapping
from itertools import pairwise

from rollout.records.bounds import MAX_COUNT, MAX_REWARD
from rollout.records.fields import Wire, pop_optional_field, refuse_number
from rollout.records.kinds import NamedReward, RecordError


def encode_rewards(rewards: Mapping[str, NamedReward]) -> dict[str, list[float]] | None:
    """Return the value and weight of each named reward; None if there are none."""
    return {name: [reward.value, reward.weight] for name, reward in rewards.items()} or None


def encode_turn_rewards(turn_rewards: Mapping[int, float]) -> list[float] | None:
    """Return a flat list of turns and their rewards, in the order of the turns; None if there are none."""
    return [number for turn in sorted(turn_rewards) for number in (turn, turn_rewards[turn])] or None


def pop_rewards(wire: Wire) -> dict[str, NamedReward]:
    """Remove the named rewards from the map, check and return them. Raises RecordError if one is not valid."""
    rewards: dict[str, NamedReward] = {}
    for name, pair in (pop_optional_field(wire, "rewards", dict) or {}).items():
        if type(pair) is not list or len(pair) != 2:
            raise RecordError(f"the reward {name!r} is {pair!r}; expected a list of its value and its weight.")
        rewards[name] = NamedReward(*(require_reward(number, f"rewards.{name}") for number in pair))
    return rewards


def pop_turn_rewards(wire: Wire) -> dict[int, float]:
    """Remove the rewards of turns from the map, check and return them. Raises RecordError if one is not valid."""
    numbers = pop_optional_field(wire, "turn_rewards", list) or []
    turns, rewards = numbers[::2], numbers[1::2]
    if len(turns) != len(rewards) or any(type(turn) is not int or not 0 <= turn <= MAX_COUNT for turn in turns):
        raise RecordError(f"'turn_rewards' begins with {numbers[:4]}; expected pairs of a turn and its reward.")
    if any(turn >= following for turn, following in pairwise(turns)):
        raise RecordError("the turns of 'turn_rewards' must rise, but one is out of order or occurs twice.")
    return {turn: require_reward(reward, f"turn_rewards.{turn}") for turn, reward in zip(turns, rewards, strict=True)}


def require_reward(value: object, name: str) -> float:
    """Return the value if it is a valid reward. Raises RecordError if it is not a finite float within the bounds."""
    if type(value) is not float or not math.isfinite(value):
        raise RecordError(f"{name!r} is {value!r}; expected a finite float.")
    if abs(value) > MAX_REWARD:
        refuse_number(name, value, -MAX_REWARD, MAX_REWARD)
    return value
