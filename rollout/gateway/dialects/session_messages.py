"""Makes messages in the form that `Session.chat` takes, and joins the system messages of a request.

All dialects make their messages here, so the same conversation is the same messages in each of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rollout.gateway.dialects.base import IncomingMessage
from rollout.gateway.dialects.normal_form import incoming_message
from rollout.records.messages import Message

_MAX_SYSTEMS = 1024


class SystemMessages:
    """The system messages of one attempt. The same texts give the same object."""

    def __init__(self) -> None:
        """Start without a known message."""
        self._known: dict[tuple[str, ...], IncomingMessage] = {}

    def join(self, texts: Iterable[str]) -> IncomingMessage:
        """Return one system message for all at the start; their texts are joined by a blank line.

        Empty texts are left out. Without any text, the message is empty.
        """
        key = tuple([text for text in texts if text])
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MAX_SYSTEMS:
                self._known.clear()
            found = self._known[key] = incoming_message({"role": "system", "content": "\n\n".join(key)})
        return found


def inner_system_message(text: str) -> Message:
    """Return the user message for a system message that is not at the start, where chat templates have no place."""
    return {"role": "user", "content": f"<system-message>\n{text}\n</system-message>"}


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


def tool_message(call_id: str, content: Any) -> Message:
    """Return the result of a tool. It gets the name of its call later, from the conversation."""
    return {"role": "tool", "content": content, "tool_call_id": call_id}


def simple_content(parts: Sequence[Mapping[str, Any]]) -> Any:
    """Return the content of a message: the text itself if there is only one text part, and the parts otherwise."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return list(parts)
