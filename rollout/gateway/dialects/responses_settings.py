"""Reads the keys of Responses requests beside `input` and `tools`: sampling, constraints, and what cannot be done."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from rollout.gateway.dialects.base import Constraint, RequestRefused
from rollout.gateway.dialects.reading import require
from rollout.gateway.dialects.request_keys import (
    Settings,
    read_engine_constraints,
    read_json_schema,
    read_openai_tool_choice,
    read_sampling,
    read_typed,
    read_value,
    refuse_impossible,
)

ENCRYPTED_REASONING = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"

_IMPOSSIBLE = {
    "background": "Send the request without it; the answer comes in the same connection.",
    "conversation": "Send the items of the conversation in `input`, or name the last answer in `previous_response_id`.",
    "prompt": "Send the text of the prompt in `instructions` and `input`.",
    "response_format": "In this API the key is `text.format`.",
    "messages": "In this API the key is `input`.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesSettings(Settings):
    """What the keys of a request ask for.

    Attributes:
        instructions: the instructions; empty without them.
        previous_response_id: the answer that the request continues; None without one.
        include: the optional parts of the answer that the client wants.
    """

    instructions: str
    previous_response_id: str | None
    include: tuple[str, ...]


def read_settings(fields: Mapping[str, msgspec.Raw]) -> ResponsesSettings:
    """Read the settings of a request. Raises RequestRefused."""
    refuse_impossible(fields, _IMPOSSIBLE)
    if read_value(fields, "n") not in (None, 1):
        raise RequestRefused("n must be 1: an answer of this API is one conversation.", parameter="n")
    constraints = read_engine_constraints(fields)
    may_call_tools = read_openai_tool_choice(read_value(fields, "tool_choice"), constraints)
    _read_text_format(read_value(fields, "text"), constraints)
    return ResponsesSettings(
        sampling=read_sampling(fields, limit_keys=("max_output_tokens",)),
        constraints=constraints,
        streamed=bool(read_typed(fields, "stream", bool, "true or false")),
        may_call_tools=may_call_tools,
        model=read_typed(fields, "model", str, "a string") or "",
        instructions=read_typed(fields, "instructions", str, "a string") or "",
        previous_response_id=read_typed(fields, "previous_response_id", str, "a string"),
        include=tuple(
            require(name, str, f"include[{index}]", "a string")
            for index, name in enumerate(read_typed(fields, "include", list, "a list of strings") or ())
        ),
    )


def _read_text_format(text: Any, constraints: dict[str, Constraint]) -> None:
    form = require(text, dict, "text", "an object").get("format") if text is not None else None
    if form is None:
        return
    kind = require(form, dict, "text.format", "an object").get("type")
    if kind == "json_schema":
        constraints["structured_outputs"] = Constraint("text.format", {"json": read_json_schema(form, "text.format")})
    elif kind == "json_object":
        constraints["structured_outputs"] = Constraint("text.format", {"json_object": True})
    elif kind == "grammar":
        grammar = require(form.get("grammar"), str, "text.format.grammar", "a string")
        constraints["structured_outputs"] = Constraint("text.format", {"grammar": grammar})
    elif kind != "text":
        raise RequestRefused(
            "text.format.type must be 'text', 'json_schema' or 'json_object'.", parameter="text.format.type"
        )
