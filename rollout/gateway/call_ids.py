"""Keeps the results of tools with their calls: maps the ids that a client changed to our own, and names the results."""

from collections.abc import Sequence
from typing import Any

from rollout.gateway.dialects.base import IncomingMessage
from rollout.records.messages import Message


def call_ids(message: Message) -> tuple[Any, ...]:
    """Return the ids of the calls in a message."""
    return tuple([call.get("id") for call in message.get("tool_calls") or ()])


def with_call(message: Message, call_id: Any, name: str | None) -> Message:
    """Return a tool's result with this id and this name of its call; the message itself if it has both already."""
    wanted = {"tool_call_id": call_id, "name": name}
    changed = {key: value for key, value in wanted.items() if value is not None and message.get(key) != value}
    return {**message, **changed} if changed else message


class CallNames:
    """The names of the tool calls in a conversation that grows, by their ids. The last call with an id counts."""

    __slots__ = ("_names", "_read")

    def __init__(self) -> None:
        """Begin without a conversation."""
        self._names: dict[Any, str] = {}
        self._read = 0

    def find(self, call_id: Any, messages: Sequence[Message]) -> str | None:
        """Return the name of a call; None if no message has it.

        Args:
            call_id: the id of the call.
            messages: the conversation until now. It begins with the messages of the earlier look-ups.
        """
        for message in messages[self._read :]:
            for call in message.get("tool_calls") or ():
                self._names[call.get("id")] = call["function"]["name"]
        self._read = len(messages)
        return None if call_id is None else self._names.get(call_id)


class CallIds:
    """The ids of tool calls that a client changed, during the walk of one request.

    The ids of a client can collide: in one message, where the results are taken in order, and over messages, where the
    last message with the id counts.
    """

    __slots__ = ("_known",)

    def __init__(self, known: dict[Any, tuple[Any, ...]] | None = None) -> None:
        """Begin without changed ids, or with known ones: our own ids for each id of the client."""
        self._known = known or {}

    def copy(self) -> "CallIds":
        """Return ids that change independently of these."""
        return CallIds(dict(self._known))

    def after(self, echo: Sequence[IncomingMessage], own: tuple[Any, ...]) -> "CallIds":
        """Return the ids after an assistant message; see `map_calls`. These stay as they are."""
        ids = self.copy()
        ids.map_calls(echo, own)
        return ids

    def map_calls(self, echo: Sequence[IncomingMessage], own: tuple[Any, ...]) -> None:
        """Map the ids of the calls in an assistant message to our own ids of these calls."""
        if not own:
            return
        ids = call_ids(echo[0].message)
        for part in echo[1:]:
            ids += call_ids(part.message)
        known = self._known
        if not ids or (not known and ids == own):
            return
        if len(own) == 1:
            known[ids[0]] = own
            return
        own_by_id: dict[Any, tuple[Any, ...]] = {}
        for client_id, own_id in zip(ids, own, strict=False):
            own_by_id[client_id] = (*own_by_id.get(client_id, ()), own_id)
        known.update(own_by_id)

    def take(self, client_id: Any) -> Any:
        """Return our id for the id in a tool's result."""
        own = self._known.get(client_id) if self._known else None
        if own is None:
            return client_id
        if len(own) > 1:
            self._known[client_id] = own[1:]
        return own[0]
