"""The dialect OpenAI chat completions: `/v1/chat/completions`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from rollout.gateway.dialects.base import Answer, Constraint, IncomingMessage, RequestRefused, TurnRequest
from rollout.gateway.dialects.chat_answers import (
    echoed_message,
    write_chunks,
    write_completion,
    write_error,
    write_error_events,
)
from rollout.gateway.dialects.chat_messages import JoinedSystems, placed_messages, read_message, read_tools
from rollout.gateway.dialects.normal_form import incoming_message
from rollout.gateway.dialects.reading import KnownItems, require, split_list, split_object
from rollout.gateway.dialects.request_values import read_logit_bias, read_sampling, read_typed, read_value

_MAX_CHOICES = 128
_IMPOSSIBLE = {
    "functions": "Send the functions in `tools`.",
    "function_call": "Send `tool_choice`.",
    "audio": "The policy writes only text.",
    "input": "In this API the key is `messages`.",
    "prompt": "In this API the key is `messages`.",
}


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What only this dialect needs to write an answer.

    Attributes:
        include_usage: whether a stream ends with the numbers of tokens.
    """

    include_usage: bool


class ChatDialect:
    """Chat completions, for one endpoint. It implements `Dialect`."""

    name = "chat"

    def __init__(self) -> None:
        """Start without any known message."""
        self._messages = KnownItems(read_message)
        self._tools = KnownItems(read_tools)
        self._joined = JoinedSystems()

    def read(self, body: bytes) -> TurnRequest:
        """Read the body of a request. Raises RequestRefused."""
        fields = split_object(body)
        for key, advice in _IMPOSSIBLE.items():
            if read_value(fields, key) is not None:
                raise RequestRefused(f"{key} is not possible here. {advice}", parameter=key)
        messages, places = self._read_messages(fields)
        tools, ignored = self._read_tools(fields)
        constraints: dict[str, Constraint] = {}
        may_call_tools = _read_tool_choice(read_value(fields, "tool_choice"), constraints)
        _read_constraints(fields, constraints)
        stream_options = read_typed(fields, "stream_options", dict, "an object") or {}
        return TurnRequest(
            messages=messages,
            places=places,
            tools=tools,
            sampling=read_sampling(fields, max_tokens_keys=("max_completion_tokens", "max_tokens")),
            constraints=constraints,
            choices=_read_choices(fields),
            streamed=bool(read_typed(fields, "stream", bool, "true or false")),
            may_call_tools=may_call_tools,
            wants_logprobs=bool(read_typed(fields, "logprobs", bool, "true or false")),
            model=read_typed(fields, "model", str, "a string") or "",
            ignored_tools=ignored,
            options=ChatOptions(include_usage=stream_options.get("include_usage") is True),
        )

    def part_place(self, request: TurnRequest, index: int, part: int) -> str:
        """Return the place in the request of a part of a message."""
        return f"{request.places[index]}.content[{part}]"

    def write_answer(self, request: TurnRequest, answer: Answer) -> bytes:
        """Return the answer as one JSON object."""
        return write_completion(request, answer)

    def write_events(self, request: TurnRequest, answer: Answer) -> Iterable[bytes]:
        """Return the answer as server-sent events in the official order."""
        return write_chunks(request, answer, include_usage=request.options.include_usage)

    def sent_messages(self, request: TurnRequest, answer: Answer) -> Sequence[IncomingMessage]:
        """Return, for each choice, the message that `read` returns for an exact echo."""
        return [incoming_message(echoed_message(choice)) for choice in answer.choices]

    def write_refusal(self, refusal: RequestRefused) -> bytes:
        """Return the JSON body of an error."""
        return write_error(refusal)

    def write_failure_events(self, request: TurnRequest, refusal: RequestRefused) -> Iterable[bytes]:
        """Return the events of an error after the first byte of a stream was sent."""
        return write_error_events(refusal)

    def _read_messages(self, fields: Mapping[str, msgspec.Raw]) -> tuple[list[IncomingMessage], list[str]]:
        if "messages" not in fields:
            raise RequestRefused("messages is missing; it must be a list of messages.", parameter="messages")
        read = self._messages.read
        items = [
            read(raw, f"messages[{index}]") for index, raw in enumerate(split_list(fields["messages"], "messages"))
        ]
        if not items:
            raise RequestRefused("messages is empty; it must have at least one message.", parameter="messages")
        messages, places = placed_messages(items, self._joined)
        if messages[-1].role == "assistant":
            raise RequestRefused(
                f"{places[-1]} has the role 'assistant', but the last message must be for the policy: it cannot "
                "continue a message that was begun for it.",
                parameter=places[-1],
            )
        return messages, places

    def _read_tools(
        self, fields: Mapping[str, msgspec.Raw]
    ) -> tuple[Sequence[Mapping[str, Any]] | None, tuple[str, ...]]:
        if "tools" not in fields or bytes(fields["tools"]) == b"null":
            return None, ()
        schemas, ignored = self._tools.read(fields["tools"], "tools")
        return schemas or None, ignored


def _read_choices(fields: Mapping[str, msgspec.Raw]) -> int:
    choices = read_typed(fields, "n", int, "a whole number")
    if choices is None:
        return 1
    if not 1 <= choices <= _MAX_CHOICES:
        raise RequestRefused(f"n is {choices}; it must be from 1 to {_MAX_CHOICES}.", parameter="n")
    return int(choices)


def _read_tool_choice(choice: Any, constraints: dict[str, Constraint]) -> bool:
    """Return whether the policy may call tools. A forced tool becomes a constraint."""
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


def _read_constraints(fields: Mapping[str, msgspec.Raw], constraints: dict[str, Constraint]) -> None:
    if structure := read_typed(fields, "structured_outputs", dict, "an object"):
        constraints["structured_outputs"] = Constraint("structured_outputs", structure)
    if bias := read_logit_bias(fields):
        constraints["logit_bias"] = Constraint("logit_bias", bias)
    form = read_typed(fields, "response_format", dict, "an object with a type")
    if form is None or form.get("type") == "text":
        return
    kind = form.get("type")
    if kind == "json_object":
        constraints["structured_outputs"] = Constraint("response_format", {"json_object": True})
    elif kind == "json_schema":
        place = "response_format.json_schema"
        holder = require(form.get("json_schema"), dict, place, "an object with a schema")
        schema = require(holder.get("schema"), dict, f"{place}.schema", "a JSON schema, which is an object")
        constraints["structured_outputs"] = Constraint("response_format", {"json": schema})
    else:
        raise RequestRefused(
            "response_format.type must be 'text', 'json_schema' or 'json_object'.", parameter="response_format.type"
        )
