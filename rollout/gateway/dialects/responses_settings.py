"""Reads the keys of Responses requests beside `input` and `tools`: sampling, constraints, and what cannot be done."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from rollout.gateway.dialects.base import Constraint, RequestRefused
from rollout.gateway.dialects.reading import parse, require

ENCRYPTED_REASONING = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"

_NUMBERS = {
    "temperature": (0, 2, "a number from 0 to 2"),
    "top_p": (0, 1, "a number above 0 and at most 1"),
    "min_p": (0, 1, "a number from 0 to 1"),
    "presence_penalty": (-2, 2, "a number from -2 to 2"),
    "frequency_penalty": (-2, 2, "a number from -2 to 2"),
    "repetition_penalty": (0, math.inf, "a number above 0"),
}
_ABOVE_ZERO = ("top_p", "repetition_penalty")
_INTEGERS = {"max_output_tokens": 1, "top_k": -1, "seed": 0}
_OUR_NAMES = {"max_output_tokens": "max_tokens"}
_MAX_DIGITS = 9
_IMPOSSIBLE = {
    "background": "Send the request without it; the answer comes in the same connection.",
    "conversation": "Send the items of the conversation in `input`, or name the last answer in `previous_response_id`.",
    "prompt": "Send the text of the prompt in `instructions` and `input`.",
    "response_format": "In this API the key is `text.format`.",
    "messages": "In this API the key is `input`.",
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
        instructions: the instructions; empty without them.
        previous_response_id: the answer that the request continues; None without one.
        include: the optional parts of the answer that the client wants.
    """

    sampling: Mapping[str, Any]
    constraints: Mapping[str, Constraint]
    streamed: bool
    may_call_tools: bool
    model: str
    instructions: str
    previous_response_id: str | None
    include: tuple[str, ...]


def read_settings(fields: Mapping[str, msgspec.Raw]) -> Settings:
    """Read the settings of a request. Raises RequestRefused."""
    for key, advice in _IMPOSSIBLE.items():
        if key in fields and _value(fields, key) not in (None, False):
            raise RequestRefused(f"{key} is not possible here. {advice}", parameter=key)
    if _value(fields, "n") not in (None, 1):
        raise RequestRefused("n must be 1: an answer of this API is one conversation.", parameter="n")
    constraints: dict[str, Constraint] = {}
    may_call_tools = _read_tool_choice(_value(fields, "tool_choice"), constraints)
    _read_text_format(_value(fields, "text"), constraints)
    _read_other_constraints(fields, constraints)
    return Settings(
        sampling=_read_sampling(fields),
        constraints=constraints,
        streamed=bool(_typed(fields, "stream", bool, "true or false")),
        may_call_tools=may_call_tools,
        model=_typed(fields, "model", str, "a string") or "",
        instructions=_typed(fields, "instructions", str, "a string") or "",
        previous_response_id=_typed(fields, "previous_response_id", str, "a string"),
        include=tuple(
            require(name, str, f"include[{index}]", "a string")
            for index, name in enumerate(_typed(fields, "include", list, "a list of strings") or ())
        ),
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
        value = _value(fields, key)
        if value is not None:
            number = require(value, (int, float), key, expected)
            if not low <= number <= high or (number == 0 and key in _ABOVE_ZERO):
                raise RequestRefused(f"{key} is {number}; it must be {expected}.", parameter=key)
            sampling[key] = number
    for key, low in _INTEGERS.items():
        value = _value(fields, key)
        if value is not None:
            expected = f"a whole number of at least {low}"
            if require(value, int, key, expected) < low:
                raise RequestRefused(f"{key} is {value}; it must be {expected}.", parameter=key)
            sampling[_OUR_NAMES.get(key, key)] = value
    stop = _value(fields, "stop")
    if stop is not None:
        sampling["stop"] = _read_stop(stop)
    return sampling


def _read_stop(stop: Any) -> list[str]:
    texts = [stop] if isinstance(stop, str) else require(stop, list, "stop", "a string or a list of strings")
    for index, text in enumerate(texts):
        if not require(text, str, f"stop[{index}]", "a string"):
            raise RequestRefused(
                f"stop[{index}] is empty; it must have at least one letter.", parameter=f"stop[{index}]"
            )
    return list(texts)


def _read_tool_choice(choice: Any, constraints: dict[str, Constraint]) -> bool:
    """Return whether the policy may call tools. A forced tool, or a part of the tools, becomes a constraint."""
    if choice is None or choice == "auto":
        return True
    if choice == "none":
        return False
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if not isinstance(kind, str) or (isinstance(choice, str) and choice != "required"):
        raise RequestRefused(
            "tool_choice must be 'auto', 'none', 'required', or an object that names a tool.", parameter="tool_choice"
        )
    constraints["tool_choice"] = Constraint("tool_choice", None)
    return True


def _read_text_format(text: Any, constraints: dict[str, Constraint]) -> None:
    form = require(text, dict, "text", "an object").get("format") if text is not None else None
    if form is None:
        return
    kind = require(form, dict, "text.format", "an object").get("type")
    if kind == "json_schema":
        schema = require(form.get("schema"), dict, "text.format.schema", "a JSON schema, which is an object")
        constraints["structured_outputs"] = Constraint("text.format", {"json": schema})
    elif kind == "json_object":
        constraints["structured_outputs"] = Constraint("text.format", {"json_object": True})
    elif kind == "grammar":
        grammar = require(form.get("grammar"), str, "text.format.grammar", "a string")
        constraints["structured_outputs"] = Constraint("text.format", {"grammar": grammar})
    elif kind != "text":
        raise RequestRefused(
            "text.format.type must be 'text', 'json_schema' or 'json_object'.", parameter="text.format.type"
        )


def _read_other_constraints(fields: Mapping[str, msgspec.Raw], constraints: dict[str, Constraint]) -> None:
    """Read `logit_bias` and `structured_outputs`, which clients of vLLM add to the request."""
    structure = _typed(fields, "structured_outputs", dict, "an object")
    if structure:
        constraints["structured_outputs"] = Constraint("structured_outputs", structure)
    bias = _typed(fields, "logit_bias", dict, "an object of token ids and numbers")
    if not bias:
        return
    weights: dict[int, float] = {}
    for token, weight in bias.items():
        if not (token.isascii() and token.isdigit() and len(token) <= _MAX_DIGITS):
            raise RequestRefused("logit_bias has a key that is no token id.", parameter="logit_bias")
        weights[int(token)] = require(weight, (int, float), f"logit_bias.{token}", "a number")
    constraints["logit_bias"] = Constraint("logit_bias", weights)
