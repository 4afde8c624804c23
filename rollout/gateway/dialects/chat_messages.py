"""Reads the messages of chat completions, and puts a conversation together.

Each message is read once, by its bytes; see `KnownItems`. What depends on the messages before it is kept beside it: the
name of a tool's result is that of its call, and a system message is another one at the start than elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from rollout.gateway.dialects.base import IncomingMessage, RequestRefused
from rollout.gateway.dialects.chat_tools import custom_arguments
from rollout.gateway.dialects.reading import (
    inner_system_message,
    join_system_messages,
    read_image_url,
    require,
    simple_content,
)
from rollout.gateway.normal_form import incoming_message
from rollout.records.messages import Message

_MAX_SYSTEMS = 1024
_SYSTEM_ROLES = ("system", "developer")
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image_url", "input_image")
_NO_CALLS: Mapping[str, str] = {}


@dataclass(slots=True, eq=False)
class ReadMessage:
    """A message of a request.

    Attributes:
        message: the message, if it is the same in every conversation; None for a system message and a tool's result.
        system_text: the text of a system message; None for others.
        calls: the names of the calls in a message of the assistant, by their ids.
        result: the result of a tool, without the name of the tool; None for other messages.
        versions: the results of this message with the name of each tool for which it occurred.
    """

    message: IncomingMessage | None = None
    system_text: str | None = None
    calls: Mapping[str, str] = field(default_factory=lambda: _NO_CALLS)
    result: Message | None = None
    versions: dict[str | None, IncomingMessage] = field(default_factory=dict)


class ConversationBuilder:
    """Puts the messages of a request together, and remembers the system messages that it made."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._systems: dict[tuple[str, ...], IncomingMessage] = {}

    def build(self, items: Sequence[ReadMessage], places: Sequence[str]) -> tuple[list[IncomingMessage], list[str]]:
        """Return the messages of a conversation, and the place of each."""
        start = 0
        while start < len(items) and items[start].system_text is not None:
            start += 1
        messages: list[IncomingMessage] = []
        if start:
            messages.append(self._leading_system([item.system_text or "" for item in items[:start]]))
        names: dict[str, str] = {}
        for item in items[start:] if start else items:
            message = item.message
            if message is None:
                message = _make_result(item, names) if item.result is not None else _make_inner_system(item)
            elif item.calls:
                names.update(item.calls)
            messages.append(message)
        return messages, [*places[: min(start, 1)], *places[start:]]

    def _leading_system(self, texts: Sequence[str]) -> IncomingMessage:
        key = tuple(texts)
        found = self._systems.get(key)
        if found is None:
            if len(self._systems) >= _MAX_SYSTEMS:
                self._systems.clear()
            joined = join_system_messages([{"content": text} for text in texts if text])
            found = self._systems[key] = incoming_message(joined)
        return found


def read_message(item: Any, place: str) -> ReadMessage:
    """Read a message. Raises RequestRefused."""
    role = require(item, dict, place, "an object").get("role")
    if role == "user":
        content = simple_content(_read_parts(item.get("content"), f"{place}.content"))
        return ReadMessage(incoming_message({"role": "user", "content": content} | _read_name(item, place)))
    if role == "assistant":
        return _read_assistant(item, place)
    if role == "tool":
        return ReadMessage(result=_read_result(item, place))
    if role in _SYSTEM_ROLES:
        parts = _read_parts(item.get("content"), f"{place}.content")
        return ReadMessage(system_text="\n\n".join(_texts(parts, f"{place}.content")))
    if role == "function":
        raise RequestRefused(
            f"{place} has the role 'function', which this server does not know. Send the result as a message of the "
            "role 'tool', with the `tool_call_id` of its call.",
            parameter=f"{place}.role",
        )
    raise RequestRefused(
        f"{place}.role must be 'system', 'developer', 'user', 'assistant' or 'tool'.", parameter=f"{place}.role"
    )


def assistant_message(text: str, reasoning: str, calls: Sequence[tuple[str, str, str]]) -> Message:
    """Return a message of the assistant; each call has its id, its name, and its arguments as JSON text."""
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in calls
        ]
    return message


def _read_assistant(item: Mapping[str, Any], place: str) -> ReadMessage:
    for key in ("function_call", "audio"):
        if item.get(key) is not None:
            advice = "Send calls as `tool_calls`." if key == "function_call" else "The policy reads text and images."
            raise RequestRefused(f"{place} has a {key}. {advice}", parameter=f"{place}.{key}")
    content = item.get("content")
    thoughts: list[str] = []
    text = "" if content is None else _read_answer_text(content, f"{place}.content", thoughts)
    text += require(item.get("refusal") or "", str, f"{place}.refusal", "a string")
    reasoning = require(item.get("reasoning_content") or "", str, f"{place}.reasoning_content", "a string")
    if not reasoning:
        # Some clients have this other name for it. At some providers it is an object, which says nothing to the policy.
        other = item.get("reasoning")
        reasoning = other if isinstance(other, str) and other else "".join(thoughts)
    calls = [
        _read_call(call, f"{place}.tool_calls[{index}]")
        for index, call in enumerate(require(item.get("tool_calls") or [], list, f"{place}.tool_calls", "a list"))
    ]
    message = assistant_message(text, reasoning, calls) | _read_name(item, place)
    return ReadMessage(incoming_message(message), calls={call_id: name for call_id, name, _ in calls})


def _read_answer_text(content: Any, place: str, thoughts: list[str]) -> str:
    """Return the text of an assistant's content, and add its parts that are reasoning to `thoughts`."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(require(content, list, place, "a string or a list of parts")):
        at = f"{place}[{index}]"
        kind = require(part, dict, at, "an object").get("type")
        if kind == "thinking":
            thoughts.append(require(part.get("thinking") or "", str, f"{at}.thinking", "a string"))
        elif kind != "redacted_thinking":
            texts += _texts([_read_part(part, at)], place, index)
    return "".join(texts)


def _read_call(call: Any, place: str) -> tuple[str, str, str]:
    """Return the id, the name and the arguments of a call."""
    kind = require(call, dict, place, "an object").get("type") or "function"
    if kind not in ("function", "custom"):
        raise RequestRefused(f"{place}.type must be 'function' or 'custom'.", parameter=f"{place}.type")
    call_id = require(call.get("id"), str, f"{place}.id", "a string")
    called = require(call.get(kind), dict, f"{place}.{kind}", "an object")
    name = require(called.get("name"), str, f"{place}.{kind}.name", "a string")
    if kind == "custom":
        return call_id, name, custom_arguments(require(called.get("input"), str, f"{place}.custom.input", "a string"))
    return call_id, name, _read_arguments(called.get("arguments"), f"{place}.function.arguments")


def _read_arguments(arguments: Any, place: str) -> str:
    """Return the arguments of a call as JSON text; some clients send them as an object."""
    if arguments is None:
        return "{}"
    if isinstance(arguments, dict):
        try:
            return orjson.dumps(arguments).decode()
        except TypeError:
            raise RequestRefused(f"{place} is nested too deeply.", parameter=place) from None
    text: str = require(arguments, str, place, "a string with JSON")
    return text


def _read_result(item: Mapping[str, Any], place: str) -> Message:
    """Return the result of a tool. A tool that returns nothing may have no content."""
    call_id = require(item.get("tool_call_id"), str, f"{place}.tool_call_id", "the id of a call")
    content = item.get("content")
    parts = [] if content is None else _read_parts(content, f"{place}.content")
    result: Message = {"role": "tool", "content": simple_content(parts), "tool_call_id": call_id}
    return result | _read_name(item, place)


def _make_result(item: ReadMessage, names: Mapping[str, str]) -> IncomingMessage:
    """Return the result of a tool with the name of its call, if the call is known."""
    result = item.result or {}
    name = names.get(result["tool_call_id"])
    found = item.versions.get(name)
    if found is None:
        found = incoming_message(result if name is None else {**result, "name": name})
        item.versions[name] = found
    return found


def _make_inner_system(item: ReadMessage) -> IncomingMessage:
    found = item.versions.get(None)
    if found is None:
        found = item.versions[None] = incoming_message(inner_system_message(item.system_text or ""))
    return found


def _read_name(item: Mapping[str, Any], place: str) -> dict[str, str]:
    name = item.get("name")
    return {"name": require(name, str, f"{place}.name", "a string")} if name else {}


def _read_parts(content: Any, place: str) -> list[dict[str, Any]]:
    """Return the content of a message as parts. Raises RequestRefused."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = require(content, list, place, "a string or a list of parts")
    return [_read_part(part, f"{place}[{index}]") for index, part in enumerate(parts)]


def _read_part(part: Any, place: str) -> dict[str, Any]:
    kind = require(part, dict, place, "an object").get("type")
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": require(part.get("text"), str, f"{place}.text", "a string")}
    if kind == "refusal":
        return {"type": "text", "text": require(part.get("refusal"), str, f"{place}.refusal", "a string")}
    if kind in _IMAGE_PARTS:
        return _read_image(part, place)
    shown = repr(kind[:64]) if isinstance(kind, str) else "no type"
    raise RequestRefused(
        f"{place} is a part of the type {shown}; the gateway takes text and images alone: text and image_url.",
        parameter=place,
    )


def _read_image(part: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return an image, whose URL may be in an object."""
    image = part.get("image_url")
    if image is None:
        raise RequestRefused(
            f"{place} has no image_url. The gateway has no files: send the bytes of the image as "
            "data:image/png;base64,… in image_url, not a file_id.",
            parameter=f"{place}.file_id" if part.get("file_id") is not None else f"{place}.image_url",
        )
    if isinstance(image, dict):
        return read_image_url(image.get("url"), f"{place}.image_url.url")
    return read_image_url(image, f"{place}.image_url")


def _texts(parts: Sequence[Mapping[str, Any]], place: str, first: int = 0) -> list[str]:
    """Return the texts of parts that must be text. `first` is the index of the first one in the message."""
    for index, part in enumerate(parts, first):
        if part["type"] != "text":
            raise RequestRefused(
                f"{place}[{index}] is an image; only messages of the user and results of tools may have images.",
                parameter=f"{place}[{index}]",
            )
    return [part["text"] for part in parts]
