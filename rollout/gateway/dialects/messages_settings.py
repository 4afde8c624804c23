"""Reads the keys of Anthropic Messages requests beside the messages and the tools: sampling, constraints, the form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from rollout.gateway.dialects.base import Constraint, RequestRefused
from rollout.gateway.dialects.reading import parse, require

_NUMBERS = {
    "temperature": (0.0, math.inf, "a number of at least 0"),
    "top_p": (0.0, 1.0, "a number above 0 and at most 1"),
}
_INTEGERS = {"max_tokens": 1, "top_k": -1}
_IMPOSSIBLE = {
    "container": "The gateway runs no code; leave it out.",
    "prompt": "In this API the key is `messages`.",
    "input": "In this API the key is `messages`.",
    "response_format": "In this API the key is `output_config.format`.",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the keys of a request ask for.

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


def read_settings(fields: Mapping[str, msgspec.Raw]) -> Settings:
    """Read the settings of a request. Raises RequestRefused."""
    for key, advice in _IMPOSSIBLE.items():
        if _value(fields, key) is not None:
            raise RequestRefused(f"{key} is not possible here. {advice}", parameter=key)
    if _value(fields, "n") not in (None, 1):
        raise RequestRefused("n must be 1: an answer of this API is one message.", parameter="n")
    constraints: dict[str, Constraint] = {}
    may_call_tools = _read_tool_choice(_value(fields, "tool_choice"), constraints)
    _read_output_format(fields, constraints)
    return Settings(
        sampling=_read_sampling(fields),
        constraints=constraints,
        streamed=bool(_typed(fields, "stream", bool, "true or false")),
        may_call_tools=may_call_tools,
        model=_typed(fields, "model", str, "a string") or "",
    )


def _value(fields: Mapping[str, msgspec.Raw], key: str) -> Any:
    return parse(fields[key], key) if key in fields else None


def _typed(fields: Mapping[str, msgspec.Raw], key: str, kind: type, expected: str) -> Any:
    """Return the value of a key; None if it is null or absent."""
    value = _value(fields, key)
    return None if value is None else require(value, kind, key, expected)


def _read_sampling(fields: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    sampling: dict[str, Any] = {}
    for key, (low, high, expected) in _NUMBERS.items():
        number = _value(fields, key)
        if number is not None:
            require(number, (int, float), key, expected)
            if not low <= number <= high or (key == "top_p" and number == 0):
                raise RequestRefused(f"{key} is {number}; it must be {expected}.", parameter=key)
            sampling[key] = number
    for key, least in _INTEGERS.items():
        count = _value(fields, key)
        if count is not None:
            expected = f"a whole number of at least {least}"
            if require(count, int, key, expected) < least:
                raise RequestRefused(f"{key} is {count}; it must be {expected}.", parameter=key)
            sampling[key] = count
    stop = _typed(fields, "stop_sequences", list, "a list of strings")
    for index, text in enumerate(stop or ()):
        place = f"stop_sequences[{index}]"
        if not require(text, str, place, "a string"):
            raise RequestRefused(f"{place} is empty; it must have at least one letter.", parameter=place)
    return sampling | ({"stop": stop} if stop else {})


def _read_tool_choice(choice: Any, constraints: dict[str, Constraint]) -> bool:
    """Return whether the policy may call tools. A forced tool becomes a constraint."""
    if choice is None:
        return True
    kind = require(choice, dict, "tool_choice", "an object such as {'type': 'auto'}").get("type")
    if kind == "none":
        return False
    if kind in ("any", "tool"):
        constraints["tool_choice"] = Constraint("tool_choice", None)
    elif kind != "auto":
        raise RequestRefused("tool_choice.type must be 'auto', 'none', 'any' or 'tool'.", parameter="tool_choice.type")
    return True


def _read_output_format(fields: Mapping[str, msgspec.Raw], constraints: dict[str, Constraint]) -> None:
    """Read the form of the answer: `output_config.format`, or `output_format`, its earlier name."""
    config = _typed(fields, "output_config", dict, "an object") or {}
    for place, form in (
        ("output_format", _value(fields, "output_format")),
        ("output_config.format", config.get("format")),
    ):
        if form is None:
            continue
        kind = require(form, dict, place, "an object").get("type")
        if kind == "json_schema":
            schema = require(form.get("schema"), dict, f"{place}.schema", "a JSON schema, which is an object")
            constraints["structured_outputs"] = Constraint(place, {"json": schema})
        elif kind != "text":
            raise RequestRefused(f"{place}.type must be 'json_schema'.", parameter=f"{place}.type")
