"""Reads the messages, the content blocks and the tools of Anthropic Messages requests."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from rollout.gateway.dialects.base import IncomingMessage, RequestRefused
from rollout.gateway.dialects.normal_form import incoming_message
from rollout.gateway.dialects.reading import (
    read_image_url,
    require,
)
from rollout.gateway.dialects.session_messages import (
    assistant_message,
    inner_system_message,
    simple_content,
    tool_message,
)
from rollout.gateway.dialects.tool_schemas import function_tool, read_description, read_tool_name
from rollout.records.messages import Message

_MAX_KNOWN = 16_384
_MAX_KNOWN_TOOLS = 256
_SYSTEM_ROLES = ("system", "developer")
_IMAGE_TYPE = re.compile(r"image/[A-Za-z0-9.+-]{1,64}")
_EMPTY_ERROR = "Error"
"""The text of a failed tool result without content: the policy would otherwise not see that the call failed."""
_ACCOUNTING = "x-anthropic-billing-header:"
"""Claude Code puts a block with this start before its system prompt. It is for the provider, and may change."""


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """What one message of a request says.

    Attributes:
        message: the message for the session, without the tool results; None if nothing else is in it. That of a system
            message is the form for a place that is not the start.
        system_text: the text of a system message; None for other roles.
        results: the messages of the tool results, in order, each with its place in this one, such as `.content[1]`.
        part_indices: the index of each part of a user message among the blocks of the request's message.
    """

    message: IncomingMessage | None
    system_text: str | None = None
    results: tuple[tuple[str, IncomingMessage], ...] = ()
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
        self._tools: dict[bytes, ReadTools] = {}

    def read(self, value: Any, place: str) -> ReadMessage:
        """Read one message of a request. Raises RequestRefused."""
        require(value, dict, place, "an object with a role and a content")
        role, content = value.get("role"), value.get("content")
        if role in _SYSTEM_ROLES:
            text = read_text(content, f"{place}.content")
            return ReadMessage(self.known(inner_system_message(text)) if text.strip() else None, system_text=text)
        if role == "assistant":
            return ReadMessage(self.known(_read_assistant(content, f"{place}.content")))
        if role == "user":
            parts, results, indices = _read_user(content, f"{place}.content")
            has_message = bool(parts) or not results
            message = {"role": "user", "content": simple_content(parts)}
            return ReadMessage(
                self.known(message) if has_message else None,
                results=tuple([(suffix, self.known(result)) for suffix, result in results]),
                part_indices=indices,
            )
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
        if len(self._tools) >= _MAX_KNOWN_TOOLS:
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


def _read_user(content: Any, place: str) -> tuple[list[dict[str, Any]], list[tuple[str, Message]], tuple[int, ...]]:
    """Return the parts and the tool results of a user message, and the index of each part among its blocks.

    Each result has its place in the message.
    """
    if isinstance(content, str):
        return [{"type": "text", "text": content}], [], (0,)
    parts: list[dict[str, Any]] = []
    results: list[tuple[str, Message]] = []
    indices: list[int] = []
    for index, block in enumerate(require(content, list, place, "a string or a list of blocks")):
        where = f"{place}[{index}]"
        if _kind(block, where) == "tool_result":
            results.append((f".content[{index}]", _read_result(block, where)))
        else:
            parts.append(_read_part(block, where, "a user message"))
            indices.append(index)
    return parts, results, tuple(indices)


def _read_result(block: dict[str, Any], place: str) -> Message:
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
    return tool_message(call_id, content)


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


def _read_assistant(content: Any, place: str) -> Message:
    if isinstance(content, str):
        return assistant_message(content, "", [])
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
    return assistant_message("".join(texts), "\n".join(filter(None, thoughts)), calls)


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
    name = read_tool_name(tool.get("name"), f"{place}.name")
    description = read_description(tool.get("description"), f"{place}.description")
    return function_tool(name, description, tool.get("input_schema"), f"{place}.input_schema")


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
