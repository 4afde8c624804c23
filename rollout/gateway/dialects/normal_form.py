"""Makes the keys by which an echo of a message is recognised.

Clients send an answer back with other white space, key order and escapes in the arguments of calls, with other ids, or
without the reasoning. The normal form ignores these differences. It keeps every letter of the text and every value of
the arguments.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from rollout.gateway.dialects.base import IncomingMessage
from rollout.records.messages import Message

_MAX_DEPTH = 200
"""Arguments that are nested deeper are compared as text. `orjson` writes at most 254 levels."""
_LONG_NUMBER = re.compile(r"[0-9]{19}")
"""`orjson` reads a whole number of more than 64 bits as a float, so numbers of this length are read by `json`."""


def incoming_message(message: Message) -> IncomingMessage:
    """Return a message with its keys. Its tool calls must have their arguments as JSON text."""
    content, calls = message.get("content") or "", message.get("tool_calls") or ()
    # The content can have megabytes of images, so it is written and hashed once for both keys.
    content_digest = _digest(content).hex()
    exact = [
        message["role"],
        content_digest,
        message.get("reasoning_content") or "",
        message.get("tool_call_id"),
        message.get("name"),
        [(call.get("id"), call["function"]["name"], call["function"]["arguments"]) for call in calls],
    ]
    if message["role"] == "assistant":
        return IncomingMessage(message, _digest(normal_form(message)), _digest(exact))
    return IncomingMessage(message, _digest(_unsampled_form(message, content_digest)), _digest(exact))


def normal_form(message: Message) -> list[Any]:
    """Return the normal form of a message. Two messages with the same normal form are the same for the policy."""
    if message["role"] != "assistant":
        return _unsampled_form(message, message.get("content") or "")
    return ["assistant", normal_text(message), normal_calls(message.get("tool_calls") or ())]


def normal_text(message: Message) -> str:
    """Return the text of an assistant message, without white space around it."""
    return content_text(message.get("content")).strip()


def normal_calls(calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the normal form of tool calls: their names and their parsed arguments, without ids."""
    return [[call["function"]["name"], _normal_arguments(call["function"]["arguments"])] for call in calls]


def content_text(content: Any) -> str:
    """Return the text of a message's content, without its images."""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content or ())


def merge_messages(parts: Sequence[Message]) -> Message:
    """Return one assistant message with the reasoning, the text and the calls of several."""
    merged: Message = {"role": "assistant", "content": "".join(content_text(part.get("content")) for part in parts)}
    reasoning = "".join(part.get("reasoning_content") or "" for part in parts)
    calls = [call for part in parts for call in part.get("tool_calls") or ()]
    return merged | ({"reasoning_content": reasoning} if reasoning else {}) | ({"tool_calls": calls} if calls else {})


def digest_form(form: Any) -> bytes:
    """Return the digest of a normal form."""
    return _digest(form)


def parse_arguments(text: str) -> Any:
    """Return the value of a call's arguments; no text means no arguments. Raises ValueError if the text is not JSON."""
    if not text.strip():
        return {}
    if _LONG_NUMBER.search(text) is None:
        try:
            return orjson.loads(text)
        except ValueError:
            pass  # `json` also reads NaN and halves of surrogate pairs, which some clients write.
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None


def _unsampled_form(message: Message, content: Any) -> list[Any]:
    """Return the normal form of a message that is not the policy's.

    The id and the name of a tool's result are left out. They follow from the call, which may have another id here.
    """
    form = [message["role"], content]
    if message["role"] != "tool" and message.get("name"):
        form.append(message["name"])
    return form


def _normal_arguments(text: str) -> Any:
    """Return the arguments of a call as a list of their value; arguments that are not JSON are returned as text."""
    try:
        return [_normal_value(parse_arguments(text), _MAX_DEPTH)]
    except ValueError:
        return text


def _normal_value(value: Any, depth: int) -> Any:
    """Return a value in which a whole number has one form, because some clients send 1 for 1.0."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("the number is not finite")
        return int(value) if value.is_integer() else value
    if not isinstance(value, dict | list):
        return value
    if not depth:
        raise ValueError("the JSON is nested too deep")
    if isinstance(value, dict):
        return {key: _normal_value(item, depth - 1) for key, item in value.items()}
    return [_normal_value(item, depth - 1) for item in value]


def _digest(value: Any) -> bytes:
    try:
        data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # It has a whole number of more than 64 bits, or half of a surrogate pair.
        data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(data, digest_size=16).digest()
