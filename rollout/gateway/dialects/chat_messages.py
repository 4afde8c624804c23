"""Reads the messages and the tools of chat completions."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from rollout.gateway.dialects.base import IncomingMessage, RequestRefused
from rollout.gateway.dialects.normal_form import incoming_message
from rollout.gateway.dialects.reading import (
    inner_system_message,
    join_system_messages,
    read_image_url,
    require,
    simple_content,
)
from rollout.records.messages import Message

SYSTEM_ROLES = ("system", "developer")
_ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")
_REASONING_KEYS = ("reasoning_content", "reasoning")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_.:-]{1,128}")


def read_message(item: Any, place: str) -> IncomingMessage:
    """Read one message of a request. A system message is read as such, wherever it stands. Raises RequestRefused."""
    require(item, dict, place, "an object with a role and a content")
    role = item.get("role")
    if role not in _ROLES:
        hint = "; results of functions are messages with the role 'tool'" if role == "function" else ""
        raise RequestRefused(
            f"{place}.role is {_shown(role)}; it must be one of {', '.join(_ROLES)}{hint}.", parameter=f"{place}.role"
        )
    if role in SYSTEM_ROLES:
        return incoming_message({"role": "system", "content": _read_text(item.get("content"), f"{place}.content")})
    if role == "assistant":
        return incoming_message(_read_assistant(item, place))
    content = read_content(item.get("content"), f"{place}.content")
    message: Message = {"role": role, "content": content}
    if role == "tool":
        call_id = item.get("tool_call_id")
        message["tool_call_id"] = require(call_id, str, f"{place}.tool_call_id", "the id of a tool call")
    return incoming_message(message)


def read_content(content: Any, place: str) -> Any:
    """Read the content of a user or tool message: a string, or parts of text and images. Raises RequestRefused."""
    if isinstance(content, str):
        return content
    parts = require(content, list, place, "a string or a list of parts")
    return simple_content([_read_part(part, f"{place}[{index}]") for index, part in enumerate(parts)])


def placed_messages(
    items: Sequence[IncomingMessage], joined: "JoinedSystems"
) -> tuple[list[IncomingMessage], list[str]]:
    """Return the messages of a conversation and the place of each in the request.

    Leading system messages are joined; others become user messages.
    """
    lead = 0
    while lead < len(items) and items[lead].role == "system":
        lead += 1
    messages: list[IncomingMessage] = []
    places: list[str] = []
    if lead:
        messages.append(items[0] if lead == 1 else joined.join(items[:lead]))
        places.append("messages[0]")
    for index in range(lead, len(items)):
        item = items[index]
        messages.append(joined.inner(item) if item.role == "system" else item)
        places.append(f"messages[{index}]")
    return messages, places


class JoinedSystems:
    """Remembers the messages that were made of system messages, so that the same ones give the same objects."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[tuple[IncomingMessage, ...], IncomingMessage]] = {}

    def join(self, systems: Sequence[IncomingMessage]) -> IncomingMessage:
        """Return one system message for several at the start."""
        return self._remember(tuple(systems), join_system_messages([system.message for system in systems]))

    def inner(self, system: IncomingMessage) -> IncomingMessage:
        """Return the user message for a system message that is not at the start."""
        return self._remember((system,), inner_system_message(str(system.message["content"])))

    def _remember(self, systems: tuple[IncomingMessage, ...], message: Message) -> IncomingMessage:
        key = (message["role"], *map(id, systems))
        if key not in self._known:
            # The entry keeps the messages, so that no other object gets the same `id()`.
            self._known[key] = (systems, incoming_message(message))
        return self._known[key][1]


def read_tools(tools: Any, place: str) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Return the schemas of functions, and the types of the tools that were left out. Raises RequestRefused."""
    schemas: list[dict[str, Any]] = []
    ignored: list[str] = []
    for index, tool in enumerate(require(tools, list, place, "a list of tools")):
        kind = require(tool, dict, f"{place}[{index}]", "an object").get("type", "function")
        if kind != "function":
            ignored.append(require(kind, str, f"{place}[{index}].type", "a string"))
            continue
        where = f"{place}[{index}].function"
        function = require(tool.get("function"), dict, where, "an object with a name")
        name = function.get("name")
        if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
            raise RequestRefused(
                f"{where}.name must have 1 to 128 letters, digits or the characters _ . : -", parameter=f"{where}.name"
            )
        schema: dict[str, Any] = {"name": name}
        if function.get("description") is not None:
            schema["description"] = require(function["description"], str, f"{where}.description", "a string")
        parameters = function.get("parameters")
        schema["parameters"] = (
            {"type": "object", "properties": {}}
            if parameters is None
            else require(parameters, dict, f"{where}.parameters", "a JSON schema, which is an object")
        )
        schemas.append({"type": "function", "function": schema})
    return schemas, tuple(ignored)


def _read_assistant(item: Mapping[str, Any], place: str) -> Message:
    if item.get("function_call") is not None:
        raise RequestRefused(
            f"{place}.function_call is not possible here; send the call in `tool_calls`.",
            parameter=f"{place}.function_call",
        )
    content = item.get("content")
    message: Message = {
        "role": "assistant",
        "content": "" if content is None else _read_text(content, f"{place}.content", joined_by=""),
    }
    reasoning = next((item[key] for key in _REASONING_KEYS if isinstance(item.get(key), str) and item[key]), None)
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    calls = item.get("tool_calls")
    if calls:
        require(calls, list, f"{place}.tool_calls", "a list of tool calls")
        message["tool_calls"] = [_read_call(call, f"{place}.tool_calls[{at}]") for at, call in enumerate(calls)]
    return message


def _read_call(call: Any, place: str) -> dict[str, Any]:
    require(call, dict, place, "an object")
    function = require(call.get("function"), dict, f"{place}.function", "an object with a name and arguments")
    name = require(function.get("name"), str, f"{place}.function.name", "a string")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = orjson.dumps(arguments).decode()
    elif arguments is None:
        arguments = "{}"
    require(arguments, str, f"{place}.function.arguments", "JSON text")
    call_id = require(call.get("id") or "", str, f"{place}.id", "a string")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _read_text(content: Any, place: str, joined_by: str = "\n") -> str:
    """Return the text of a system or assistant message, whose parts must be text."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(require(content, list, place, "a string or a list of text parts")):
        where = f"{place}[{index}]"
        kind = require(part, dict, where, "an object with a type").get("type")
        if kind in ("text", "input_text", "output_text"):
            texts.append(require(part.get("text"), str, f"{where}.text", "a string"))
        elif kind == "refusal":
            texts.append(require(part.get("refusal"), str, f"{where}.refusal", "a string"))
        elif kind not in ("thinking", "redacted_thinking", "reasoning"):
            raise RequestRefused(
                f"{where} is of the type {_shown(kind)}; this message may have only text.", parameter=where
            )
    return joined_by.join(texts)


def _read_part(part: Any, place: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = require(part, dict, place, "an object with a type").get("type")
    if kind in ("text", "input_text", "output_text"):
        return {"type": "text", "text": require(part.get("text"), str, f"{place}.text", "a string")}
    if kind in ("image_url", "input_image"):
        image = part.get("image_url")
        return read_image_url(image.get("url") if isinstance(image, dict) else image, place)
    raise RequestRefused(
        f"{place} is of the type {_shown(kind)}; only text and images (type image_url) are accepted.", parameter=place
    )


def _shown(value: Any) -> str:
    return repr(value)[:60]
