"""Reads the messages of chat completions, and puts a conversation together.

Each message is read once, by its bytes; see `KnownItems`. A system message is another one at the start than elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from rollout.gateway.dialects.base import IncomingMessage, RequestRefused
from rollout.gateway.dialects.normal_form import incoming_message
from rollout.gateway.dialects.openai_parts import part_texts, read_part, read_parts
from rollout.gateway.dialects.reading import require
from rollout.gateway.dialects.session_messages import (
    SystemMessages,
    assistant_message,
    inner_system_message,
    simple_content,
    tool_message,
)
from rollout.gateway.dialects.tool_schemas import custom_arguments
from rollout.records.messages import Message

_SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """A message of a request.

    Attributes:
        message: the message for the session. That of a system message is the form for a place that is not the start.
        system_text: the text of a system message; None for others.
    """

    message: IncomingMessage
    system_text: str | None = None


class ConversationBuilder:
    """Puts the messages of a request together, and remembers the system messages that it made."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._systems = SystemMessages()

    def build(self, items: Sequence[ReadMessage], places: Sequence[str]) -> tuple[list[IncomingMessage], list[str]]:
        """Return the messages of a conversation, and the place of each."""
        start = 0
        while start < len(items) and items[start].system_text is not None:
            start += 1
        messages: list[IncomingMessage] = []
        if start:
            messages.append(self._systems.join([item.system_text or "" for item in items[:start]]))
        messages += [item.message for item in (items[start:] if start else items)]
        return messages, [*places[: min(start, 1)], *places[start:]]


def read_message(item: Any, place: str) -> ReadMessage:
    """Read a message. Raises RequestRefused."""
    role = require(item, dict, place, "an object").get("role")
    if role == "user":
        content = simple_content(read_parts(item.get("content"), f"{place}.content"))
        return ReadMessage(incoming_message({"role": "user", "content": content} | _read_name(item, place)))
    if role == "assistant":
        return _read_assistant(item, place)
    if role == "tool":
        return ReadMessage(incoming_message(_read_result(item, place)))
    if role in _SYSTEM_ROLES:
        parts = read_parts(item.get("content"), f"{place}.content")
        text = "\n\n".join(part_texts(parts, f"{place}.content"))
        return ReadMessage(incoming_message(inner_system_message(text)), system_text=text)
    if role == "function":
        raise RequestRefused(
            f"{place} has the role 'function', which this server does not know. Send the result as a message of the "
            "role 'tool', with the `tool_call_id` of its call.",
            parameter=f"{place}.role",
        )
    raise RequestRefused(
        f"{place}.role must be 'system', 'developer', 'user', 'assistant' or 'tool'.", parameter=f"{place}.role"
    )


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
    return ReadMessage(incoming_message(assistant_message(text, reasoning, calls) | _read_name(item, place)))


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
            texts += part_texts([read_part(part, at)], place, index)
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
    parts = [] if content is None else read_parts(content, f"{place}.content")
    return tool_message(call_id, simple_content(parts)) | _read_name(item, place)


def _read_name(item: Mapping[str, Any], place: str) -> dict[str, str]:
    name = item.get("name")
    return {"name": require(name, str, f"{place}.name", "a string")} if name else {}
