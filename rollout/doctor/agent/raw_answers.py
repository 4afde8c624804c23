"""Reads the assistant's messages in the body of a request as the program wrote them, in each dialect."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class RawCall:
    """A tool call in a request.

    Attributes:
        id: its id.
        name: the name of the tool.
        arguments: the arguments: text, or an object in the dialect `messages`.
    """

    id: Any
    name: str
    arguments: Any


@dataclass(slots=True)
class RawAnswer:
    """An assistant message in a request, or several items of the dialect `responses` that belong together.

    Attributes:
        texts: its texts.
        empty: how chat completions write that there is no text: `null`, `""`, `[]` or `absent`; otherwise empty.
        reasoning: the reasoning, by the key that holds it.
        calls: its tool calls.
        has_references: whether it refers to an item by its id alone.
    """

    texts: list[str] = field(default_factory=list)
    empty: str = ""
    reasoning: dict[str, str] = field(default_factory=dict)
    calls: list[RawCall] = field(default_factory=list)
    has_references: bool = False


def read_raw_answers(dialect: str, body: bytes) -> list[RawAnswer]:
    """Return the assistant's messages in a body; none if it cannot be read."""
    try:
        request = orjson.loads(body)
    except ValueError:
        return []
    if not isinstance(request, Mapping):
        return []
    if dialect == "responses":
        return list(_read_items(request.get("input")))
    messages = [message for message in _list(request.get("messages")) if message.get("role") == "assistant"]
    return [_read_blocks(message) if dialect == "messages" else _read_message(message) for message in messages]


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _read_message(message: Mapping[str, Any]) -> RawAnswer:
    answer = RawAnswer()
    content = message.get("content")
    if isinstance(content, str) and content:
        answer.texts.append(content)
    answer.texts += [str(part.get("text")) for part in _list(content) if part.get("text")]
    if not answer.texts:
        answer.empty = "absent" if "content" not in message else orjson.dumps(content).decode()
    for key, value in message.items():
        if key not in ("role", "content", "name", "refusal", "id") and isinstance(value, str) and value:
            answer.reasoning[key] = value
    for part in _list(content):
        if isinstance(part.get("thinking"), str):
            answer.reasoning["content"] = part["thinking"]
    for call in _list(message.get("tool_calls")):
        function = call.get("function") or call.get("custom") or {}
        arguments = function.get("arguments", function.get("input"))
        answer.calls.append(RawCall(call.get("id"), str(function.get("name")), arguments))
    return answer


def _read_blocks(message: Mapping[str, Any]) -> RawAnswer:
    content = message.get("content")
    if isinstance(content, str):
        return RawAnswer(texts=[content] if content else [])
    answer = RawAnswer()
    for block in _list(content):
        match block.get("type"):
            case "text":
                answer.texts.append(str(block.get("text")))
            case "thinking":
                signed = "with" if block.get("signature") else "without"
                answer.reasoning[f"a thinking block {signed} its signature"] = str(block.get("thinking"))
            case "tool_use":
                answer.calls.append(RawCall(block.get("id"), str(block.get("name")), block.get("input")))
    return answer


def _read_items(items: Any) -> Iterator[RawAnswer]:
    """Yield the answers in the items of an input; items without others between them are one answer."""
    answer: RawAnswer | None = None
    for item in _list(items):
        kind = item.get("type", "message")
        if (kind == "message" and item.get("role") != "assistant") or str(kind).endswith("_output"):
            if answer is not None:
                yield answer
            answer = None
            continue
        answer = answer or RawAnswer()
        match kind:
            case "message":
                content = item.get("content")
                texts = [content] if isinstance(content, str) else [str(part.get("text")) for part in _list(content)]
                answer.texts += texts
            case "reasoning":
                _read_reasoning(item, answer)
            case "function_call" | "custom_tool_call":
                arguments = item.get("arguments", item.get("input"))
                answer.calls.append(RawCall(item.get("call_id"), str(item.get("name")), arguments))
            case "item_reference":
                answer.has_references = True
    if answer is not None:
        yield answer


def _read_reasoning(item: Mapping[str, Any], answer: RawAnswer) -> None:
    for key in ("content", "summary"):
        text = "\n\n".join(str(part.get("text")) for part in _list(item.get(key)))
        if text:
            answer.reasoning[f"{key} of a reasoning item"] = text
    if not answer.reasoning and item.get("encrypted_content"):
        answer.reasoning["encrypted_content of a reasoning item"] = ""
