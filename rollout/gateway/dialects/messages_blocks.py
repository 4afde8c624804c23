"""Reads the messages, the content blocks and the tools of Anthropic Messages requests."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
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

_MAX_KNOWN = 16_384
_MAX_KNOWN_SYSTEMS = 256
_SYSTEM_ROLES = ("system", "developer")
_IMAGE_TYPE = re.compile(r"image/[A-Za-z0-9.+-]{1,64}")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_.:-]{1,128}")
_EMPTY_ERROR = "Error"
"""The text of a failed tool result without content: the policy would otherwise not see that the call failed."""
_ACCOUNTING = "x-anthropic-billing-header:"
"""Claude Code puts a block with this start before its system prompt. It is for the provider, and may change."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A result of a tool, which becomes a message of its own.

    Attributes:
        call_id: the id of the call.
        content: the content of the message.
        place: its place in the message of the request, such as `.content[1]`.
        named: the messages that were made of it, by the name of the tool; the name follows from the conversation.
    """

    call_id: str
    content: Any
    place: str
    named: dict[str | None, IncomingMessage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """What one message of a request says.

    Attributes:
        message: the message for the session, without the tool results; None if nothing else is in it. That of a system
            message is the form for a place that is not the start.
        system_text: the text of a system message; None for other roles.
        results: the tool results, in order.
        calls: the id and the name of each tool call.
        part_indices: the index of each part of a user message among the blocks of the request's message.
    """

    message: IncomingMessage | None
    system_text: str | None = None
    results: tuple[ToolResult, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()
    part_indices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadTools:
    """The tools of a request.

    Attributes:
        schemas: the tools as `Session.chat` takes them; None without tools.
        ignored: the types of the tools that were left out.
    """

    schemas: Sequence[dict[str, Any]] | None
    ignored: tuple[str, ...]


class MessageReader:
    """Reads messages of one attempt. Messages that say the same are the same object.

    Claude Code moves `cache_control` to another block at every turn, so the bytes of a known message change. Its
    content without such extras is looked up here, so that the session knows the message and its images.
    """

    def __init__(self) -> None:
        """Start without any known message."""
        self._known: dict[bytes, IncomingMessage] = {}
        self._systems: dict[tuple[str, ...], IncomingMessage] = {}
        self._tools: dict[bytes, ReadTools] = {}

    def read(self, value: Any, place: str) -> ReadMessage:
        """Read one message of a request. Raises RequestRefused."""
        require(value, dict, place, "an object with a role and a content")
        role, content = value.get("role"), value.get("content")
        if role in _SYSTEM_ROLES:
            text = read_text(content, f"{place}.content")
            return ReadMessage(self.known(inner_system_message(text)) if text.strip() else None, system_text=text)
        if role == "assistant":
            message, calls = _read_assistant(content, f"{place}.content")
            return ReadMessage(self.known(message), calls=calls)
        if role == "user":
            parts, results, indices = _read_user(content, f"{place}.content")
            has_message = bool(parts) or not results
            message = {"role": "user", "content": simple_content(parts)}
            return ReadMessage(self.known(message) if has_message else None, results=results, part_indices=indices)
        raise RequestRefused(
            f"{place}.role must be 'user', 'assistant' or 'system'.",
            parameter=f"{place}.role",
        )

    def known(self, message: Message) -> IncomingMessage:
        """Return the object of a message that says exactly the same, or a new one."""
        incoming = incoming_message(message)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        return self._known.setdefault(incoming.exact_key, incoming)

    def tool_message(self, result: ToolResult, name: str | None) -> IncomingMessage:
        """Return the message of a tool result, for a tool of this name."""
        found = result.named.get(name)
        if found is None:
            message = {"role": "tool", "content": result.content, "tool_call_id": result.call_id}
            found = result.named[name] = self.known(message if name is None else message | {"name": name})
        return found

    def system_message(self, texts: tuple[str, ...]) -> IncomingMessage:
        """Return the system message at the start, of the texts of all leading system messages."""
        found = self._systems.get(texts)
        if found is None:
            if len(self._systems) >= _MAX_KNOWN_SYSTEMS:
                self._systems.clear()
            message = join_system_messages([{"content": text} for text in texts])
            found = self._systems[texts] = self.known(message)
        return found

    def read_tools(self, value: Any, place: str) -> ReadTools:
        """Read the tools of a request. Tools that say the same are the same object. Raises RequestRefused."""
        schemas: list[dict[str, Any]] = []
        ignored: list[str] = []
        for index, tool in enumerate(() if value is None else require(value, list, place, "a list of tools")):
            kind = require(tool, dict, f"{place}[{index}]", "an object").get("type")
            if kind is None or kind == "custom":
                schemas.append(_read_tool(tool, f"{place}[{index}]"))
            else:
                ignored.append(require(kind, str, f"{place}[{index}].type", "a string"))
        try:
            key = orjson.dumps([schemas, ignored])
        except TypeError:
            raise RequestRefused(f"{place} has a schema that is nested too deep.", parameter=place) from None
        if len(self._tools) >= _MAX_KNOWN_SYSTEMS:
            self._tools.clear()
        return self._tools.setdefault(key, ReadTools(schemas or None, tuple(ignored)))


def read_text(content: Any, place: str) -> str:
    """Return the text of a system message: a string, or text blocks, which are joined by a blank line."""
    if isinstance(content, str):
        return content
    texts = []
    for index, block in enumerate(require(content, list, place, "a string or a list of text blocks")):
        where = f"{place}[{index}]"
        if _kind(block, where) != "text":
            raise RequestRefused(
                f"{where} is of the type {_show(block['type'])}, but a system message can only have text. Put images "
                "into a user message.",
                parameter=where,
            )
        text = _text(block, where)
        if not text.startswith(_ACCOUNTING):
            texts.append(text)
    return "\n\n".join(texts)


def compact_json(value: Any) -> str:
    """Return the input of a call as JSON text, in its own order. Raises TypeError if it is nested too deep."""
    return orjson.dumps(value).decode()


def _read_user(content: Any, place: str) -> tuple[list[dict[str, Any]], tuple[ToolResult, ...], tuple[int, ...]]:
    """Return the parts and the tool results of a user message, and the index of each part among its blocks."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}], (), (0,)
    parts: list[dict[str, Any]] = []
    results: list[ToolResult] = []
    indices: list[int] = []
    for index, block in enumerate(require(content, list, place, "a string or a list of blocks")):
        where = f"{place}[{index}]"
        if _kind(block, where) == "tool_result":
            results.append(_read_result(block, where, f".content[{index}]"))
        else:
            parts.append(_read_part(block, where, "a user message"))
            indices.append(index)
    return parts, tuple(results), tuple(indices)


def _read_result(block: dict[str, Any], place: str, suffix: str) -> ToolResult:
    call_id = require(block.get("tool_use_id"), str, f"{place}.tool_use_id", "the id of a tool_use block")
    given = block.get("content")
    if given is None or isinstance(given, str):
        content: Any = given or ""
    else:
        where = f"{place}.content"
        content = simple_content(
            [
                _read_part(part, f"{where}[{index}]", "a tool_result")
                for index, part in enumerate(require(given, list, where, "a string or a list of blocks"))
            ]
        )
    if block.get("is_error") and not content:
        content = _EMPTY_ERROR
    return ToolResult(call_id, content, suffix)


def _read_part(block: Any, place: str, owner: str) -> dict[str, Any]:
    """Return the part of a message for a text block or an image block."""
    kind = _kind(block, place)
    if kind == "text":
        return {"type": "text", "text": _text(block, place)}
    if kind == "image":
        return _read_image(block, place)
    raise RequestRefused(
        f"{place} is of the type {_show(kind)}, which is not supported in {owner}. Send text and images.",
        parameter=place,
    )


def _read_image(block: dict[str, Any], place: str) -> dict[str, Any]:
    source = require(block.get("source"), dict, f"{place}.source", "an object with the bytes of the image as base64")
    kind = source.get("type")
    if kind == "url":
        return read_image_url(source.get("url"), place)
    if kind != "base64":
        raise RequestRefused(
            f"{place} has an image with a source of the type {_show(kind)}; only 'base64' is supported. Send the bytes "
            "of the image.",
            parameter=place,
        )
    media_type = require(source.get("media_type"), str, f"{place}.source.media_type", "a type such as image/png")
    if _IMAGE_TYPE.fullmatch(media_type) is None:
        raise RequestRefused(
            f"{place}.source.media_type must be a type such as image/png.", parameter=f"{place}.source.media_type"
        )
    data = require(source.get("data"), str, f"{place}.source.data", "the bytes of the image as base64")
    return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}


def _read_assistant(content: Any, place: str) -> tuple[Message, tuple[tuple[str, str], ...]]:
    """Return an assistant message, and the id and the name of each of its calls."""
    if isinstance(content, str):
        return assistant_message(content, "", []), ()
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[tuple[str, str, str]] = []
    for index, block in enumerate(require(content, list, place, "a string or a list of blocks")):
        where = f"{place}[{index}]"
        kind = _kind(block, where)
        if kind == "text":
            texts.append(_text(block, where))
        elif kind == "thinking":
            thoughts.append(require(block.get("thinking"), str, f"{where}.thinking", "a string"))
        elif kind == "tool_use":
            calls.append(_read_call(block, where))
        elif kind != "redacted_thinking":
            raise RequestRefused(
                f"{where} is of the type {_show(kind)}, which is not supported in an assistant message. Send text, "
                "thinking and tool_use blocks.",
                parameter=where,
            )
    message = assistant_message("".join(texts), "\n".join(filter(None, thoughts)), calls)
    return message, tuple((call_id, name) for call_id, name, _ in calls)


def assistant_message(text: str, reasoning: str, calls: Sequence[tuple[str, str, str]]) -> Message:
    """Return an assistant message as `Session.chat` takes it; a call is its id, its name and its arguments."""
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in calls
        ]
    return message


def _read_call(block: dict[str, Any], place: str) -> tuple[str, str, str]:
    given = block.get("input")
    arguments = {} if given is None else require(given, dict, f"{place}.input", "an object with the arguments")
    try:
        text = compact_json(arguments)
    except TypeError:
        raise RequestRefused(f"{place}.input is nested too deep.", parameter=f"{place}.input") from None
    return (
        require(block.get("id"), str, f"{place}.id", "the id of the call"),
        require(block.get("name"), str, f"{place}.name", "the name of the tool"),
        text,
    )


def _read_tool(tool: dict[str, Any], place: str) -> dict[str, Any]:
    name = require(tool.get("name"), str, f"{place}.name", "the name of the tool")
    if _TOOL_NAME.fullmatch(name) is None:
        raise RequestRefused(
            f"{place}.name must have 1 to 128 letters, digits, '_', '.', ':' or '-'.", parameter=f"{place}.name"
        )
    function: dict[str, Any] = {"name": name}
    if tool.get("description") is not None:
        function["description"] = require(tool["description"], str, f"{place}.description", "a string")
    schema = tool.get("input_schema")
    function["parameters"] = (
        {"type": "object", "properties": {}}
        if schema is None
        else require(schema, dict, f"{place}.input_schema", "a JSON schema, which is an object")
    )
    return {"type": "function", "function": function}


def _kind(block: Any, place: str) -> str:
    return str(
        require(
            require(block, dict, place, "a block, which is an object").get("type"), str, f"{place}.type", "a string"
        )
    )


def _text(block: dict[str, Any], place: str) -> str:
    return str(require(block.get("text"), str, f"{place}.text", "a string"))


def _show(kind: Any) -> str:
    return repr(str(kind)[:40])
