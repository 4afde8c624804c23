"""Reads the keys of chat completions beside `messages` and `tools`: sampling, constraints, and what cannot be done."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from rollout.gateway.dialects.base import Constraint, RequestRefused
from rollout.gateway.dialects.reading import require
from rollout.gateway.dialects.request_keys import (
    Settings,
    read_count,
    read_engine_constraints,
    read_json_schema,
    read_openai_tool_choice,
    read_sampling,
    read_typed,
    read_value,
    refuse_impossible,
)

_IMPOSSIBLE = {
    "functions": "Send the functions as `tools`.",
    "function_call": "Send the functions as `tools`, and `tool_choice` instead of this key.",
    "audio": "The policy writes text alone.",
    "prompt": "In this API the key is `messages`.",
    "chat_template": "The template is that of the model.",
    "chat_template_kwargs": "Set `model.template` in the configuration of the run.",
    "continue_final_message": "The last message must be of the user or of a tool.",
    "echo": "The answer has new text alone.",
    "use_beam_search": "Send `n` to get several answers.",
}
_GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
"""The earlier names of `structured_outputs`, and its keys."""
_LIMITS = ("max_tokens", "max_completion_tokens")
_MAX_CHOICES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings(Settings):
    """What the keys of a request ask for.

    Attributes:
        choices: the number of answers.
        wants_usage: whether the stream ends with the numbers of tokens.
        wants_logprobs: whether the client wants log-probs.
        ignored_tools: the types of tools that the request asks for outside `tools`.
    """

    choices: int
    wants_usage: bool
    wants_logprobs: bool
    ignored_tools: tuple[str, ...]


def read_settings(fields: Mapping[str, msgspec.Raw]) -> ChatSettings:
    """Read the settings of a request. Raises RequestRefused."""
    refuse_impossible(fields, _IMPOSSIBLE)
    if "audio" in (read_typed(fields, "modalities", list, "a list of strings") or ()):
        raise RequestRefused("modalities must be ['text']: the policy writes text alone.", parameter="modalities")
    constraints = read_engine_constraints(fields)
    may_call_tools = read_openai_tool_choice(read_value(fields, "tool_choice"), constraints)
    _read_response_format(read_value(fields, "response_format"), constraints)
    for key, structure in _GUIDED.items():
        value = read_value(fields, key)
        if value is not None:
            constraints["structured_outputs"] = Constraint(key, {structure: value})
    choices = read_count(fields, "n", 1) or 1
    if choices > _MAX_CHOICES:
        raise RequestRefused(f"n is {choices}; it must be at most {_MAX_CHOICES}.", parameter="n")
    stream_options = read_typed(fields, "stream_options", dict, "an object") or {}
    wants_usage = stream_options.get("include_usage")
    if wants_usage is not None:
        require(wants_usage, bool, "stream_options.include_usage", "true or false")
    return ChatSettings(
        sampling=read_sampling(fields, limit_keys=_LIMITS),
        constraints=constraints,
        choices=choices,
        streamed=bool(read_typed(fields, "stream", bool, "true or false")),
        wants_usage=bool(wants_usage),
        may_call_tools=may_call_tools,
        wants_logprobs=bool(read_typed(fields, "logprobs", bool, "true or false")),
        model=read_typed(fields, "model", str, "a string") or "",
        ignored_tools=() if read_value(fields, "web_search_options") is None else ("web_search",),
    )


def _read_response_format(form: Any, constraints: dict[str, Constraint]) -> None:
    if form is None:
        return
    kind = require(form, dict, "response_format", "an object").get("type")
    if kind == "json_schema":
        schema = read_json_schema(form.get("json_schema"), "response_format.json_schema")
        constraints["structured_outputs"] = Constraint("response_format", {"json": schema})
    elif kind == "json_object":
        constraints["structured_outputs"] = Constraint("response_format", {"json_object": True})
    elif kind != "text":
        raise RequestRefused(
            "response_format.type must be 'text', 'json_schema' or 'json_object'.", parameter="response_format.type"
        )
