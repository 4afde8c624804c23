"""Reads the items of the `input` of Responses requests, and keeps the items of earlier answers.

An answer of the policy is several items: its reasoning, its text, and each of its calls. Clients send them back
changed: without ids, without the text of the reasoning, or as references. An item that says the same as one that we
sent becomes the same object as that one.

Items that stand for tools of a provider never come from us. Those that a client runs itself, such as
`local_shell_call`, become calls and results of tools. Those that a provider runs, such as `web_search_call`, hold no
message and are skipped. Those that change the conversation in a way that we cannot know, such as `compaction`, are
refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import orjson

from rollout.gateway.dialects.base import IncomingMessage, RequestRefused
from rollout.gateway.dialects.normal_form import incoming_message
from rollout.gateway.dialects.openai_parts import part_texts, read_parts
from rollout.gateway.dialects.reading import read_image_url, require
from rollout.gateway.dialects.responses_tools import full_name
from rollout.gateway.dialects.session_messages import inner_system_message, simple_content, tool_message
from rollout.gateway.dialects.tool_schemas import custom_arguments

ENCRYPTED_PREFIX = "rollout-"
"""What we send as `encrypted_content` is this prefix and the id of the item; nothing is secret in it."""

_CLIENT_CALLS = ("local_shell_call", "shell_call", "apply_patch_call", "computer_call")
_CLIENT_OUTPUTS = tuple(f"{kind}_output" for kind in _CLIENT_CALLS)
_PROVIDER_ITEMS = frozenset(
    (
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "image_generation_call",
        "mcp_list_tools",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "tool_search_call",
        "tool_search_output",
        "ghost_snapshot",
    )
)


class ItemKind(IntEnum):
    """What an item is. Reasoning, text and calls are parts of an assistant message."""

    REASONING = 0
    TEXT = 1
    CALL = 2
    OUTPUT = 3
    USER = 4
    SYSTEM = 5
    SKIPPED = 6


@dataclass(eq=False, slots=True)
class Item:
    """An item of a conversation. Items are compared by identity.

    Attributes:
        kind: what it is.
        text: the text of reasoning, of the assistant, or of a system message.
        call_id: the id of a call.
        name: the name of the called tool, as the policy knows it.
        arguments: the arguments of the call as JSON text.
        message: the message of a user item, of a tool's result, or of a system item that is not at the start.
        answer: the id of the answer that the item was sent in; None if it is not ours.
    """

    kind: ItemKind
    text: str = ""
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    message: IncomingMessage | None = None
    answer: str | None = None

    def says(self, other: "Item") -> bool:
        """Return whether two items of an answer say the same."""
        return (
            self.kind is other.kind
            and self.text == other.text
            and self.call_id == other.call_id
            and self.name == other.name
            and self.arguments == other.arguments
        )


class KeptItems:
    """The items of the answers of one attempt, by the ids that the client knows."""

    def __init__(self) -> None:
        """Start without items."""
        self._by_id: dict[str, Item] = {}
        self._by_call_id: dict[str, Item | None] = {}

    def keep(self, item_id: str, item: Item) -> None:
        """Keep an item that was sent."""
        self._by_id[item_id] = item
        if item.kind is ItemKind.CALL:
            # An engine may use an id of a call again; then it says nothing.
            self._by_call_id[item.call_id] = None if item.call_id in self._by_call_id else item

    def find(self, item_id: Any) -> Item | None:
        """Return the item that was sent with an id."""
        return self._by_id.get(item_id) if isinstance(item_id, str) else None

    def find_sent(self, item: Item, item_id: Any) -> Item:
        """Return the item that was sent if this one says the same, and this one otherwise."""
        sent = self.find(item_id)
        if sent is None and item.kind is ItemKind.CALL:
            sent = self._by_call_id.get(item.call_id)
        return sent if sent is not None and sent.says(item) else item

    def full_name_of(self, call_id: str, name: str) -> str:
        """Return the name of a called tool with the namespace that the client left out."""
        sent = self._by_call_id.get(call_id)
        return sent.name if sent is not None and sent.name.endswith(name) else name


class ItemReader:
    """Reads items."""

    def __init__(self, kept: KeptItems) -> None:
        """Read items that may refer to those that were kept."""
        self._kept = kept
        self._readers: dict[str, Callable[[Mapping[str, Any], str], Item]] = {
            "message": self._read_message,
            "reasoning": self._read_reasoning,
            "function_call": self._read_call,
            "custom_tool_call": self._read_custom_call,
            "function_call_output": _read_output,
            "custom_tool_call_output": _read_output,
            "item_reference": self._read_reference,
            "agent_message": _read_agent_message,
            "configuration_update": _read_configuration_update,
            **dict.fromkeys(_CLIENT_CALLS, _read_client_call),
            **dict.fromkeys(_CLIENT_OUTPUTS, _read_client_output),
        }

    def read(self, value: Any, place: str) -> Item:
        """Read an item. Raises RequestRefused."""
        item = require(value, dict, place, "an object")
        kind = item.get("type")
        if kind is None:
            kind = "message" if "role" in item or "id" not in item else "item_reference"
        reader = self._readers.get(require(kind, str, f"{place}.type", "a string"))
        if reader is not None:
            return reader(item, place)
        if kind in _PROVIDER_ITEMS:
            return Item(ItemKind.SKIPPED)
        raise RequestRefused(
            f"{place} has the type {kind[:64]!r}, which the gateway cannot show to the policy. Send messages, "
            "reasoning, function calls and custom tool calls, and their outputs.",
            parameter=f"{place}.type",
        )

    def _read_message(self, item: Mapping[str, Any], place: str) -> Item:
        role = require(item.get("role"), str, f"{place}.role", "a string")
        content = item.get("content")
        if role == "assistant":
            text = "".join(part_texts(read_parts(content or "", f"{place}.content"), f"{place}.content"))
            return self._kept.find_sent(Item(ItemKind.TEXT, text=text), item.get("id"))
        parts = read_parts(content, f"{place}.content")
        if role in ("system", "developer"):
            text = "\n\n".join(part_texts(parts, f"{place}.content"))
            return Item(ItemKind.SYSTEM, text=text, message=incoming_message(inner_system_message(text)))
        if role == "user":
            message = incoming_message({"role": "user", "content": simple_content(parts)})
            return Item(ItemKind.USER, message=message)
        raise RequestRefused(
            f"{place}.role is {role[:64]!r}; it must be user, assistant, system or developer.",
            parameter=f"{place}.role",
        )

    def _read_reasoning(self, item: Mapping[str, Any], place: str) -> Item:
        """Read reasoning. Its content counts before its summary: a provider's summary can be shorter."""
        text = _read_thoughts(item.get("content"), f"{place}.content")
        text = text or _read_thoughts(item.get("summary"), f"{place}.summary")
        encrypted = item.get("encrypted_content")
        if not text and isinstance(encrypted, str):
            sent = self._kept.find(encrypted.removeprefix(ENCRYPTED_PREFIX))
            if sent is not None and sent.kind is ItemKind.REASONING:
                return sent
        return self._kept.find_sent(Item(ItemKind.REASONING, text=text), item.get("id"))

    def _read_call(self, item: Mapping[str, Any], place: str) -> Item:
        arguments = require(item.get("arguments"), str, f"{place}.arguments", "a string with JSON")
        return self._call(item, place, arguments)

    def _read_custom_call(self, item: Mapping[str, Any], place: str) -> Item:
        text = require(item.get("input"), str, f"{place}.input", "a string")
        return self._call(item, place, custom_arguments(text))

    def _call(self, item: Mapping[str, Any], place: str, arguments: str) -> Item:
        call_id = _read_call_id(item, place)
        name = require(item.get("name"), str, f"{place}.name", "a string")
        namespace = item.get("namespace")
        if namespace is None:
            name = self._kept.full_name_of(call_id, name)
        else:
            name = full_name(require(namespace, str, f"{place}.namespace", "a string"), name)
        call = Item(ItemKind.CALL, call_id=call_id, name=name, arguments=arguments)
        return self._kept.find_sent(call, item.get("id"))

    def _read_reference(self, item: Mapping[str, Any], place: str) -> Item:
        item_id = require(item.get("id"), str, f"{place}.id", "a string")
        sent = self._kept.find(item_id)
        if sent is None:
            raise RequestRefused(
                f"{place} refers to the item {item_id[:128]!r}, which no answer of this rollout had. Send the item "
                "itself.",
                parameter=f"{place}.id",
            )
        return sent


def _read_output(item: Mapping[str, Any], place: str) -> Item:
    content = simple_content(read_parts(item.get("output"), f"{place}.output"))
    return Item(ItemKind.OUTPUT, message=incoming_message(tool_message(_read_call_id(item, place), content)))


def _read_agent_message(item: Mapping[str, Any], place: str) -> Item:
    """Read a message of one agent of Codex to another, as a user message that names both."""
    author, recipient = (require(item.get(key), str, f"{place}.{key}", "a string") for key in ("author", "recipient"))
    head = {"type": "text", "text": f"Message from {author} to {recipient}:\n"}
    parts = [head, *read_parts(item.get("content"), f"{place}.content")]
    return Item(ItemKind.USER, message=incoming_message({"role": "user", "content": parts}))


def _read_configuration_update(item: Mapping[str, Any], place: str) -> Item:
    """Skip a new effort for reasoning. A new format for the text would constrain the policy, and is refused."""
    text = item.get("text")
    if text is not None and text != {"format": {"type": "text"}}:
        raise RequestRefused(
            f"{place} sets the format of the text. Set it in `text.format` of the request.", parameter=f"{place}.text"
        )
    return Item(ItemKind.SKIPPED)


def _read_client_call(item: Mapping[str, Any], place: str) -> Item:
    """Read the call of a tool of the client's own, such as a shell."""
    action = item.get("action", item.get("operation", item.get("actions")))
    return Item(
        ItemKind.CALL,
        call_id=_read_call_id(item, place),
        name=str(item["type"]).removesuffix("_call"),
        arguments=_to_json(action if isinstance(action, dict) else {"action": action}, place),
    )


def _read_client_output(item: Mapping[str, Any], place: str) -> Item:
    """Read the result of such a call: a text, a screenshot, or values that are shown as JSON."""
    output, content = item.get("output"), ""
    if isinstance(output, dict) and output.get("image_url") is not None:
        content = simple_content([read_image_url(output["image_url"], f"{place}.output.image_url")])
    elif output is not None:
        content = output if isinstance(output, str) else _to_json(output, f"{place}.output")
    return Item(ItemKind.OUTPUT, message=incoming_message(tool_message(_read_call_id(item, place), content)))


def _to_json(value: Any, place: str) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        raise RequestRefused(f"{place} is nested too deeply.", parameter=place) from None


def _read_call_id(item: Mapping[str, Any], place: str) -> str:
    call_id = item.get("call_id")
    # The output of a local shell has the id of its call as its own id.
    if call_id is None and item["type"] in ("local_shell_call", "local_shell_call_output"):
        call_id = item.get("id")
    text: str = require(call_id, str, f"{place}.call_id", "a string")
    return text


def _read_thoughts(parts: Any, place: str) -> str:
    if isinstance(parts, str):
        return parts
    texts = []
    for index, part in enumerate(require(parts, list, place, "a list") if parts is not None else ()):
        text = require(part, dict, f"{place}[{index}]", "an object").get("text")
        texts.append(require(text, str, f"{place}[{index}].text", "a string"))
    return "\n\n".join(texts)
