"""Reads the keys of Anthropic Messages requests beside the messages and the tools: sampling, constraints, the form."""

from collections.abc import Mapping
from typing import Any

import msgspec

from rollout.gateway.dialects.base import Constraint, RequestRefused
from rollout.gateway.dialects.reading import require
from rollout.gateway.dialects.request_keys import (
    Settings,
    read_engine_constraints,
    read_json_schema,
    read_sampling,
    read_typed,
    read_value,
    refuse_impossible,
)

_IMPOSSIBLE = {
    "container": "The gateway runs no code; leave it out.",
    "prompt": "In this API the key is `messages`.",
    "input": "In this API the key is `messages`.",
    "response_format": "In this API the key is `output_config.format`.",
}


def read_settings(fields: Mapping[str, msgspec.Raw]) -> Settings:
    """Read the settings of a request. Raises RequestRefused."""
    refuse_impossible(fields, _IMPOSSIBLE)
    if read_value(fields, "n") not in (None, 1):
        raise RequestRefused("n must be 1: an answer of this API is one message.", parameter="n")
    constraints = read_engine_constraints(fields)
    may_call_tools = _read_tool_choice(read_value(fields, "tool_choice"), constraints)
    _read_output_format(fields, constraints)
    return Settings(
        sampling=read_sampling(fields, limit_keys=("max_tokens",), stop_key="stop_sequences"),
        constraints=constraints,
        streamed=bool(read_typed(fields, "stream", bool, "true or false")),
        may_call_tools=may_call_tools,
        model=read_typed(fields, "model", str, "a string") or "",
    )


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
    config = read_typed(fields, "output_config", dict, "an object") or {}
    for place, form in (
        ("output_format", read_value(fields, "output_format")),
        ("output_config.format", config.get("format")),
    ):
        if form is None:
            continue
        kind = require(form, dict, place, "an object").get("type")
        if kind == "json_schema":
            constraints["structured_outputs"] = Constraint(place, {"json": read_json_schema(form, place)})
        elif kind != "text":
            raise RequestRefused(f"{place}.type must be 'json_schema'.", parameter=f"{place}.type")
