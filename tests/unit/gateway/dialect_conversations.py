"""Plays one planned conversation as a client of each dialect, with or without a server."""

from collections.abc import Sequence
from typing import Any

from rollout.gateway.dialects.chat import ChatDialect
from tests.unit.gateway.dialect_clients import (
    PARAMETERS,
    SYSTEM,
    TOOL_NAMES,
    DialectClient,
    MessagesClient,
    ResponsesClient,
)

CHAT_TOOLS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in TOOL_NAMES]


class PlainChatClient(DialectClient):
    """A client of chat completions that repeats answers as it got them."""

    def __init__(self) -> None:
        super().__init__(None)
        self.dialect = ChatDialect()

    def request(self) -> dict[str, Any]:
        messages = [{"role": "system", "content": SYSTEM}, *self.conversation]
        return {"model": "policy", "tools": CHAT_TOOLS, "messages": messages}

    def add_user(self, text: str) -> None:
        self.conversation.append({"role": "user", "content": text})

    def add_answer(self, answer: dict[str, Any]) -> list[str]:
        message = answer["choices"][0]["message"]
        self.conversation.append(message)
        return [call["id"] for call in message.get("tool_calls") or ()]

    def add_results(self, ids: Sequence[str], contents: Sequence[Any]) -> None:
        for call_id, content in zip(ids, contents, strict=True):
            self.conversation.append({"role": "tool", "tool_call_id": call_id, "content": content})


def new_client(dialect: str) -> DialectClient:
    """Return a client of a dialect that repeats answers as it got them."""
    if dialect == "chat":
        return PlainChatClient()
    return ResponsesClient(None) if dialect == "responses" else MessagesClient(None)


PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
