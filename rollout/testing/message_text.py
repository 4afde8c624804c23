"""Writes messages as lines of text, for errors and for differences between two conversations."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rollout.records.messages import Message

_SHOWN_URL_CHARACTERS = 60
_SHOWN_CHARACTERS = 1000


def describe_messages(messages: Sequence[Message]) -> str:
    """Return messages as indented text; of a long message, only the end is shown."""
    return "\n".join(f"  {line}" for message in messages for line in _shortened(message))


def _shortened(message: Message) -> list[str]:
    text = "\n".join(message_lines(message))
    return (text if len(text) <= _SHOWN_CHARACTERS else f"… {text[-_SHOWN_CHARACTERS:]}").splitlines()


def message_lines(message: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a message, plain or in canonical form: its role, its texts and images, and its tool calls."""
    names = [f"{key}={message[key]}" for key in ("name", "tool_call_id") if message.get(key) is not None]
    yield " ".join([f"{message.get('role')}:", *names])
    if message.get("reasoning_content"):
        yield "(thinks)"
        yield from str(message["reasoning_content"]).splitlines()
    yield from _content_lines(message.get("content"))
    for call in message.get("tool_calls") or ():
        yield f"(calls) {_describe_call(call)}"


def _content_lines(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield from content.splitlines()
    elif isinstance(content, Mapping):
        yield from _part_lines(content)
    elif isinstance(content, Sequence):
        for part in content:
            yield from _part_lines(part) if isinstance(part, Mapping) else _content_lines(part)


def _part_lines(part: Mapping[str, Any]) -> Iterator[str]:
    for key in ("text", "thinking", "content"):
        if part.get(key) is not None:
            yield from _content_lines(part[key])
            return
    image = part.get("hash") or part.get("image_url") or part.get("image")
    url = str(image.get("url") if isinstance(image, Mapping) else image)
    yield f"<image {url if len(url) <= _SHOWN_URL_CHARACTERS else f'{url[:_SHOWN_URL_CHARACTERS]}…'}>"


def _describe_call(call: Mapping[str, Any]) -> str:
    function = call.get("function", {})
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False, sort_keys=True)
    return f"{function.get('name')}({arguments})"
