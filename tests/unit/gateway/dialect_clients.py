"""Clients of each dialect: they keep a conversation, send it as a request, and repeat answers by their habits."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from rollout.gateway.dialects.base import Dialect
from rollout.gateway.dialects.chat import ChatDialect
from rollout.gateway.dialects.messages import MessagesDialect
from rollout.gateway.dialects.responses import ResponsesDialect
from tests.unit.gateway.random_conversations import ClientHabits

SYSTEM = "You are an agent."
TOOL_NAMES = ("view", "run", "mcp__files__read")
PARAMETERS = {"type": "object", "properties": {}}


class DialectClient(ABC):
    """A program that speaks one dialect. Without habits, it repeats answers as it got them."""

    dialect: Dialect

    def __init__(self, habits: ClientHabits | None) -> None:
        self.habits = habits
        self.conversation: list[Any] = []

    @abstractmethod
    def request(self) -> dict[str, Any]:
        """Return the request for the next answer."""

    @abstractmethod
    def add_user(self, text: str) -> None:
        """Add a user message."""

    @abstractmethod
    def add_answer(self, answer: dict[str, Any]) -> list[str]:
        """Add the echo of an answer, and return the ids of its calls."""

    @abstractmethod
    def add_results(self, ids: Sequence[str], contents: Sequence[Any]) -> None:
        """Add the results of calls. A content is a text, or parts as `Session.chat` takes them."""

    def body(self) -> bytes:
        """Return the body of the next request."""
        if self.habits is None:
            return json.dumps(self.request()).encode()
        separators, escapes = self.habits.separators, self.habits.escapes
        return json.dumps(self.request(), separators=separators, ensure_ascii=escapes).encode()

    def new_ids(self, own: list[str]) -> list[str]:
        """Return the ids that the client uses for the calls of an answer."""
        return own if self.habits is None else self.habits.call_ids(own)

    def new_arguments(self, text: str) -> str:
        """Return the arguments of a call as the client writes them."""
        return text if self.habits is None else self.habits.arguments(json.loads(text))

    def new_text(self, text: str, has_calls: bool) -> str:
        """Return the text of an answer as the client writes it."""
        return text if self.habits is None else self.habits.text_of(text, has_calls)

    @property
    def keeps_reasoning(self) -> bool:
        """Whether the client repeats reasoning."""
        return self.habits is None or self.habits.keeps_reasoning

    @property
    def splits(self) -> bool:
        """Whether the client makes the text beside calls a message of its own."""
        return self.habits is not None and self.habits.splits

    def text(self, text: str, kind: str = "text") -> Any:
        """Return a text as a string, or as a list of one part."""
        return [{"type": kind, "text": text}] if self.habits is not None and self.habits.lists else text


class ChatClient(DialectClient):
    """A client of OpenAI chat completions."""

    def __init__(self, habits: ClientHabits | None) -> None:
        super().__init__(habits)
        self.dialect = ChatDialect()

    def request(self) -> dict[str, Any]:
        functions = [{"name": name, "parameters": PARAMETERS} for name in TOOL_NAMES]
        return {
            "model": "policy",
            "tools": [{"type": "function", "function": function} for function in functions],
            "messages": [{"role": "system", "content": self.text(SYSTEM)}, *self.conversation],
        }

    def add_user(self, text: str) -> None:
        self.conversation.append({"role": "user", "content": self.text(text)})

    def add_answer(self, answer: dict[str, Any]) -> list[str]:
        message = answer["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        ids = self.new_ids([call["id"] for call in calls])
        if self.habits is None:
            self.conversation.append(message)
            return ids
        for call, call_id in zip(calls, ids, strict=True):
            function = call["function"]
            call |= {"id": call_id, "function": {**function, "arguments": self.new_arguments(function["arguments"])}}
        text = self.new_text(message["content"] or "", bool(calls))
        message["content"] = self.text(text)
        if not text:
            message["content"] = None if self.habits.no_text == "null" else ""
            if self.habits.no_text == "absent":
                del message["content"]
        if not self.keeps_reasoning:
            message.pop("reasoning_content", None)
        if self.splits and text and calls:
            del message["tool_calls"]
            self.conversation += [message, {"role": "assistant", "content": None, "tool_calls": calls}]
        else:
            self.conversation.append(message)
        return ids

    def add_results(self, ids: Sequence[str], contents: Sequence[Any]) -> None:
        for call_id, content in zip(ids, contents, strict=True):
            parts = self.text(content) if isinstance(content, str) else content
            self.conversation.append({"role": "tool", "tool_call_id": call_id, "content": parts})


class ResponsesClient(DialectClient):
    """A client of OpenAI Responses, which sends all items at every turn."""

    def __init__(self, habits: ClientHabits | None) -> None:
        super().__init__(habits)
        self.dialect = ResponsesDialect()

    def request(self) -> dict[str, Any]:
        tools = [{"type": "function", "name": name, "parameters": PARAMETERS} for name in TOOL_NAMES]
        return {"model": "policy", "instructions": SYSTEM, "tools": tools, "input": self.conversation}

    def add_user(self, text: str) -> None:
        self.conversation.append({"type": "message", "role": "user", "content": self.text(text, "input_text")})

    def add_answer(self, answer: dict[str, Any]) -> list[str]:
        calls = [item for item in answer["output"] if item["type"] == "function_call"]
        ids = self.new_ids([call["call_id"] for call in calls])
        remaining_ids = iter(ids)
        for item in answer["output"]:
            if item["type"] == "function_call":
                item |= {"call_id": next(remaining_ids), "arguments": self.new_arguments(item["arguments"])}
            elif item["type"] == "message":
                text = self.new_text(item["content"][0]["text"], bool(calls))
                if calls and not text:
                    continue
                item["content"] = [{**item["content"][0], "text": text}]
            elif not self.keeps_reasoning:
                continue
            self.conversation.append(item)
        return ids

    def add_results(self, ids: Sequence[str], contents: Sequence[Any]) -> None:
        for call_id, content in zip(ids, contents, strict=True):
            output = (
                self.text(content, "input_text") if isinstance(content, str) else list(map(_responses_part, content))
            )
            self.conversation.append({"type": "function_call_output", "call_id": call_id, "output": output})


class MessagesClient(DialectClient):
    """A client of Anthropic Messages."""

    def __init__(self, habits: ClientHabits | None) -> None:
        super().__init__(habits)
        self.dialect = MessagesDialect()

    def request(self) -> dict[str, Any]:
        tools = [{"name": name, "input_schema": PARAMETERS} for name in TOOL_NAMES]
        return {
            "model": "policy",
            "max_tokens": 100,
            "system": self.text(SYSTEM),
            "tools": tools,
            "messages": self.conversation,
        }

    def add_user(self, text: str) -> None:
        if self.conversation and self.conversation[-1]["role"] == "user":
            self.conversation[-1]["content"].append({"type": "text", "text": text})
        else:
            self.conversation.append({"role": "user", "content": self.text(text)})

    def add_answer(self, answer: dict[str, Any]) -> list[str]:
        calls = [block for block in answer["content"] if block["type"] == "tool_use"]
        ids = self.new_ids([call["id"] for call in calls])
        for call, call_id in zip(calls, ids, strict=True):
            value = call["input"] if self.habits is None else self.habits.changed(call["input"])
            call |= {"id": call_id, "input": value}
        before: list[Any] = []
        for block in answer["content"]:
            if block["type"] == "text":
                text = self.new_text(block["text"], bool(calls))
                if text or not calls:
                    before.append({"type": "text", "text": text})
            elif block["type"] == "thinking" and self.keeps_reasoning:
                before.append(block)
        parts = [before, calls] if self.splits and before and calls else [[*before, *calls]]
        self.conversation += [{"role": "assistant", "content": part} for part in parts]
        return ids

    def add_results(self, ids: Sequence[str], contents: Sequence[Any]) -> None:
        results = []
        for call_id, content in zip(ids, contents, strict=True):
            blocks = self.text(content) if isinstance(content, str) else list(map(_messages_block, content))
            results.append({"type": "tool_result", "tool_use_id": call_id, "content": blocks})
        self.conversation.append({"role": "user", "content": results})


def _responses_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    return {"type": "input_image", "image_url": part["image_url"]["url"], "detail": "auto"}


def _messages_block(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    media_type, data = part["image_url"]["url"].removeprefix("data:").split(";base64,")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


CLIENTS: tuple[type[DialectClient], ...] = (ChatClient, ResponsesClient, MessagesClient)
