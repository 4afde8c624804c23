"""Builds messages of clients, and a conversation in which a client talks to a tree, for the tests of echoes."""

from collections.abc import Sequence
from typing import Any

from rollout.gateway.dialects.base import IncomingMessage
from rollout.gateway.dialects.normal_form import incoming_message
from rollout.gateway.echoes import ConversationTree, EchoMode, Resolved

TOOLS = b"tools"

Call = tuple[str, str, str]
"""The id of a call, the name of the tool, and the arguments as JSON text."""


def user(content: Any) -> IncomingMessage:
    """Return a user message."""
    return incoming_message({"role": "user", "content": content})


def result(call_id: str, content: Any = "done") -> IncomingMessage:
    """Return the result of a tool."""
    return incoming_message({"role": "tool", "tool_call_id": call_id, "content": content})


def assistant(text: Any = "", *calls: Call, reasoning: str = "") -> IncomingMessage:
    """Return an assistant message, as a client sends it."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in calls
        ]
    return incoming_message(message)


class Client:
    """Sends conversations to a tree, and gets answers, as the endpoint does it."""

    def __init__(self, mode: EchoMode = EchoMode.TOLERANT) -> None:
        self.tree = ConversationTree(mode)
        self.turns = 0

    def send(self, *messages: IncomingMessage, tools: bytes = TOOLS) -> Resolved:
        """Send a conversation without waiting for the answer."""
        return self.tree.resolve(messages, tools)

    def ask(self, *messages: IncomingMessage, answer: IncomingMessage, tools: bytes = TOOLS) -> dict[str, Any]:
        """Send a conversation and get an answer; return the answer's message for the session."""
        resolved = self.send(*messages, tools=tools)
        message = dict(answer.message)
        self.tree.add_answer(resolved, answer, message, self.turns)
        self.turns += 1
        return message


def is_same(messages: Sequence[Any], others: Sequence[Any]) -> bool:
    """Return whether two conversations have the same objects as messages."""
    return len(messages) == len(others) and all(a is b for a, b in zip(messages, others, strict=True))
