"""Makes the keys by which an echo of a message is recognised.

Clients send an answer back with other white space, key order and escapes in the arguments of calls, with other ids, or
without the reasoning. The normal form ignores these differences. It keeps every letter of the text and every value of
the arguments.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from rollout.gateway.dialects.base import IncomingMessage
from rollout.records.messages import Message


def incoming_message(message: Message) -> IncomingMessage:
    """Return a message with its keys. Its tool calls must have their arguments as JSON text."""
    content, calls = message.get("content") or "", message.get("tool_calls") or ()
    exact = [
        message["role"],
        content,
        message.get("reasoning_content") or "",
        message.get("tool_call_id"),
        message.get("name"),
        [(call.get("id"), call["function"]["name"], call["function"]["arguments"]) for call in calls],
    ]
    return IncomingMessage(message, _digest(normal_form(message)), _digest(exact))


def normal_form(message: Message) -> list[Any]:
    """Return the normal form of a message. Two messages with the same normal form are the same for the policy."""
    content, calls = message.get("content") or "", message.get("tool_calls") or ()
    if message["role"] != "assistant":
        return [message["role"], content]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return ["assistant", text.strip(), normal_calls(calls)]


def normal_calls(calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the normal form of tool calls: their names and their parsed arguments, without ids."""
    return [(call["function"]["name"], _normal_arguments(call["function"]["arguments"])) for call in calls]


def digest_form(form: Any) -> bytes:
    """Return the digest of a normal form."""
    return _digest(form)


def _normal_arguments(text: str) -> Any:
    """Return the arguments of a call as a value; text that is not JSON is returned as it is."""
    try:
        return _normal_value(orjson.loads(text or "{}"))
    except ValueError:
        return text


def _normal_value(value: Any) -> Any:
    """Return a value in which a whole number has one form, because some clients send 1 for 1.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _normal_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normal_value(item) for item in value]
    return value


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
