"""Reads the keys of requests that several dialects have: sampling, stop texts, and what constrains an answer.

A key that is null is a key that is not set. The texts of the errors name the key.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from rollout.gateway.dialects.base import Constraint, RequestRefused
from rollout.gateway.dialects.reading import parse, require

_NUMBERS = {
    "temperature": (0, 2, "a number from 0 to 2"),
    "top_p": (0, 1, "a number above 0 and at most 1"),
    "min_p": (0, 1, "a number from 0 to 1"),
    "presence_penalty": (-2, 2, "a number from -2 to 2"),
    "frequency_penalty": (-2, 2, "a number from -2 to 2"),
    "repetition_penalty": (0, math.inf, "a number above 0"),
}
_ABOVE_ZERO = ("top_p", "repetition_penalty")
_INTEGERS = {"top_k": -1, "min_tokens": 0, "seed": 0}
_LIST_CONSTRAINTS = {"allowed_token_ids": (int, "a token id"), "bad_words": (str, "a string")}
_MAX_DIGITS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the keys of a request ask for, beside its messages and tools.

    Attributes:
        sampling: as `TurnRequest.sampling`.
        constraints: as `TurnRequest.constraints`.
        streamed: whether the client wants events.
        may_call_tools: False with `tool_choice: none`.
        model: the name of the model.
    """

    sampling: Mapping[str, Any]
    constraints: Mapping[str, Constraint]
    streamed: bool
    may_call_tools: bool
    model: str


def read_value(fields: Mapping[str, msgspec.Raw], key: str) -> Any:
    """Return the value of a key; None if it is null or absent. Raises RequestRefused."""
    return parse(fields[key], key) if key in fields else None


def read_typed(fields: Mapping[str, msgspec.Raw], key: str, kind: type, expected: str) -> Any:
    """Return the value of a key that has this type; None if it is null or absent. Raises RequestRefused."""
    value = read_value(fields, key)
    return None if value is None else require(value, kind, key, expected)


def read_count(fields: Mapping[str, msgspec.Raw], key: str, least: int) -> int | None:
    """Return a whole number; None if it is null or absent. Raises RequestRefused."""
    count: int | None = read_value(fields, key)
    if count is None:
        return None
    expected = f"a whole number of at least {least}"
    if require(count, int, key, expected) < least:
        raise RequestRefused(f"{key} is {count}; it must be {expected}.", parameter=key)
    return count


def read_sampling(
    fields: Mapping[str, msgspec.Raw], *, limit_keys: tuple[str, ...], stop_key: str = "stop"
) -> dict[str, Any]:
    """Return the sampling keys of a request, with the names of `engine.sampling`. Raises RequestRefused.

    Args:
        fields: the keys of the request.
        limit_keys: the names of the limit for an answer's tokens in this dialect; the smallest one counts.
        stop_key: the name of the stop texts in this dialect.
    """
    sampling: dict[str, Any] = {}
    for key, (low, high, expected) in _NUMBERS.items():
        number = read_value(fields, key)
        if number is not None:
            require(number, (int, float), key, expected)
            if not low <= number <= high or (number == 0 and key in _ABOVE_ZERO):
                raise RequestRefused(f"{key} is {number}; it must be {expected}.", parameter=key)
            sampling[key] = number
    for key, least in _INTEGERS.items():
        count = read_count(fields, key, least)
        if count is not None:
            sampling[key] = count
    limits = [limit for key in limit_keys if (limit := read_count(fields, key, 1)) is not None]
    if limits:
        sampling["max_tokens"] = min(limits)
    stop = _read_stop_texts(fields, stop_key)
    if stop is not None:
        sampling["stop"] = stop
    return sampling


def _read_stop_texts(fields: Mapping[str, msgspec.Raw], key: str) -> list[str] | None:
    """Return the texts that end an answer; None without one."""
    stop = read_value(fields, key)
    if stop is None:
        return None
    texts = [stop] if isinstance(stop, str) else require(stop, list, key, "a string or a list of strings")
    for index, text in enumerate(texts):
        place = f"{key}[{index}]"
        if not require(text, str, place, "a string"):
            raise RequestRefused(f"{place} is empty; it must have at least one letter.", parameter=place)
    return texts or None


def read_engine_constraints(fields: Mapping[str, msgspec.Raw]) -> dict[str, Constraint]:
    """Return the constraints that have the engine's own names. Raises RequestRefused."""
    constraints: dict[str, Constraint] = {}
    structure = read_typed(fields, "structured_outputs", dict, "an object")
    if structure:
        constraints["structured_outputs"] = Constraint("structured_outputs", structure)
    for key, (kind, expected) in _LIST_CONSTRAINTS.items():
        values = read_typed(fields, key, list, "a list")
        if values:
            for index, value in enumerate(values):
                require(value, kind, f"{key}[{index}]", expected)
            constraints[key] = Constraint(key, values)
    bias = read_typed(fields, "logit_bias", dict, "an object of token ids and numbers")
    if bias:
        constraints["logit_bias"] = Constraint("logit_bias", _read_weights(bias))
    return constraints


def read_openai_tool_choice(choice: Any, constraints: dict[str, Constraint]) -> bool:
    """Return whether the policy may call tools. A forced tool, or a part of the tools, becomes a constraint."""
    if choice is None or choice == "auto":
        return True
    if choice == "none":
        return False
    if choice != "required" and not (isinstance(choice, dict) and isinstance(choice.get("type"), str)):
        raise RequestRefused(
            "tool_choice must be 'auto', 'none', 'required', or an object that names a tool.", parameter="tool_choice"
        )
    constraints["tool_choice"] = Constraint("tool_choice", None)
    return True


def read_json_schema(holder: Any, place: str) -> dict[str, Any]:
    """Return the JSON schema in the key `schema` of an object. Raises RequestRefused."""
    schema = require(holder, dict, place, "an object").get("schema")
    return dict(require(schema, dict, f"{place}.schema", "a JSON schema, which is an object"))


def refuse_impossible(fields: Mapping[str, msgspec.Raw], impossible: Mapping[str, str]) -> None:
    """Refuse a request for what cannot be done here.

    Args:
        fields: the keys of the request.
        impossible: what to do instead, for each key that may not have a value.
    """
    for key, advice in impossible.items():
        if read_value(fields, key):
            raise RequestRefused(f"{key} is not possible here. {advice}", parameter=key)


def _read_weights(bias: Mapping[str, Any]) -> dict[int, float]:
    weights: dict[int, float] = {}
    for token, weight in bias.items():
        if not (token.isascii() and token.isdigit() and len(token) <= _MAX_DIGITS):
            raise RequestRefused("logit_bias has a key that is no token id.", parameter="logit_bias")
        weights[int(token)] = require(weight, (int, float), f"logit_bias.{token}", "a number")
    return weights
