"""Makes messages of the items of a conversation, and keeps the conversations that `previous_response_id` names.

The reasoning, the text and the calls of one answer are one assistant message. The same items give the same message
object, so that a long conversation costs little at each turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.gateway.dialects.base import IncomingMessage
from rollout.gateway.dialects.normal_form import incoming_message
from rollout.gateway.dialects.responses_items import Item, ItemKind
from rollout.gateway.dialects.session_messages import SystemMessages, assistant_message
from rollout.records.messages import Message

_MAX_MESSAGES = 16_384
_RECENT_LISTS = 8


@dataclass(frozen=True, slots=True)
class _Progress:
    """The messages before the newest answer of a conversation. A longer conversation goes on from there.

    Attributes:
        instructions: the instructions of the conversation.
        items: the items of the conversation, up to the first item of the newest answer.
        messages: the messages before that answer.
        indices: for each of these messages, the index of its first item; -1 for the instructions.
    """

    instructions: str
    items: list[Item]
    messages: list[IncomingMessage]
    indices: list[int]


class MessageBuilder:
    """Makes messages of items, and remembers them."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._answers: dict[tuple[Item, ...], IncomingMessage] = {}
        self._systems = SystemMessages()
        self._recent: list[_Progress] = []

    def build(
        self, instructions: str, items: list[Item], places: Sequence[str]
    ) -> tuple[list[IncomingMessage], list[str]]:
        """Return the messages of a conversation, and the place of each."""
        known = self._find_progress(instructions, items)
        messages, indices = known.messages.copy(), known.indices.copy()
        start = len(known.items) - 1 if known.items else self._add_system(instructions, items, messages, indices)
        group = newest = _Group()
        for index in range(start, len(items)):
            item = items[index]
            kind = item.kind
            if kind <= ItemKind.CALL:
                if group.items and not group.takes(item):
                    messages[group.position] = self.answer_message(tuple(group.items))
                    group = _Group()
                if not group.items:
                    newest = group
                    group.position, group.start = len(messages), index
                    messages.append(_OPEN)
                    indices.append(index)
                group.add(item)
            elif kind is ItemKind.OUTPUT:
                messages.append(_message_of(item))
                indices.append(index)
                group.has_outputs = bool(group.items)
            elif kind is not ItemKind.SKIPPED:
                if group.items:
                    messages[group.position] = self.answer_message(tuple(group.items))
                    group = _Group()
                messages.append(_message_of(item))
                indices.append(index)
        if group.items:
            messages[group.position] = self.answer_message(tuple(group.items))
        if newest.items:
            known = _advance(known, items, messages, indices, newest)
        if known.items:
            self._recent = [known, *self._recent[: _RECENT_LISTS - 1]]
        return messages, [places[index] if index >= 0 else "instructions" for index in indices]

    def answer_message(self, items: tuple[Item, ...]) -> IncomingMessage:
        """Return the assistant message of the items of one answer."""
        found = self._answers.get(items)
        if found is None:
            if len(self._answers) >= _MAX_MESSAGES:
                self._answers.clear()
            found = self._answers[items] = incoming_message(_answer_message(items))
        return found

    def _find_progress(self, instructions: str, items: list[Item]) -> _Progress:
        """Return how far the conversation is known, and forget it: the caller remembers it with what is new."""
        for index, known in enumerate(self._recent):
            if known.instructions == instructions and _begins_with(items, known.items):
                return self._recent.pop(index)
        return _Progress(instructions, [], [], [])

    def _add_system(
        self, instructions: str, items: Sequence[Item], messages: list[IncomingMessage], indices: list[int]
    ) -> int:
        """Add the system message of the instructions and the leading system items; return where the others start."""
        start = 0
        while start < len(items) and items[start].kind is ItemKind.SYSTEM:
            start += 1
        if not instructions and not start:
            return 0
        messages.append(self._systems.join([instructions, *(item.text for item in items[:start])]))
        indices.append(-1 if instructions else 0)
        return start


class _Group:
    """The items of one assistant message, while they are collected."""

    __slots__ = ("answer", "has_calls", "has_outputs", "has_text", "items", "position", "start")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.position = 0
        self.start = 0
        self.answer: str | None = None
        self.has_text = False
        self.has_calls = False
        self.has_outputs = False

    def takes(self, item: Item) -> bool:
        """Return whether an item belongs to this message, and does not start another one."""
        if self.answer is not None and item.answer is not None:
            if self.answer != item.answer or item in self.items:
                return False
            # Some clients put the result of each parallel call behind it.
            return not self.has_outputs or item.kind is ItemKind.CALL
        if self.has_outputs:
            return False
        if item.kind is ItemKind.CALL:
            return True
        return not self.has_text and not (item.kind is ItemKind.REASONING and self.has_calls)

    def add(self, item: Item) -> None:
        """Add an item."""
        self.items.append(item)
        self.answer = self.answer or item.answer
        if item.kind is ItemKind.CALL:
            self.has_calls = True
        elif item.kind is ItemKind.TEXT:
            self.has_text = True


class KeptConversations:
    """The items of the conversation up to each answer. Conversations that continue each other share one list."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._kept: dict[str, tuple[list[Item], int]] = {}
        self._recent: list[list[Item]] = []

    def keep(self, response_id: str, items: list[Item]) -> None:
        """Keep the items of a request and of its answer. The caller does not change the list."""
        if response_id in self._kept:
            return
        shared = next((known for known in self._recent if _begins_with(items, known)), None)
        if shared is None:
            shared = list(items)
            self._recent = [shared, *self._recent[: _RECENT_LISTS - 1]]
        else:
            shared.extend(items[len(shared) :])
        self._kept[response_id] = (shared, len(items))

    def find(self, response_id: str) -> list[Item] | None:
        """Return the items up to an answer, with those of the answer; None if there was no such answer."""
        found = self._kept.get(response_id)
        return None if found is None else found[0][: found[1]]


def _advance(
    known: _Progress,
    items: list[Item],
    messages: list[IncomingMessage],
    indices: list[int],
    group: "_Group",
) -> _Progress:
    """Return the progress up to an answer."""
    position = group.position
    # The first item of the answer is among the items: only with it, the answer before it is known to be complete.
    return _Progress(known.instructions, items[: group.start + 1], messages[:position], indices[:position])


def _begins_with(items: list[Item], known: list[Item]) -> bool:
    length = len(known)
    return len(items) >= length and items[length - 1] is known[-1] and items[:length] == known


def _message_of(item: Item) -> IncomingMessage:
    """Return the message of an item that is a whole message."""
    assert item.message is not None
    return item.message


def _answer_message(items: Sequence[Item]) -> Message:
    texts = "".join(item.text for item in items if item.kind is ItemKind.TEXT)
    thoughts = "\n\n".join(item.text for item in items if item.kind is ItemKind.REASONING and item.text)
    calls = [(item.call_id, item.name, item.arguments) for item in items if item.kind is ItemKind.CALL]
    return assistant_message(texts, thoughts, calls)


_OPEN = incoming_message({"role": "assistant", "content": ""})
"""Holds the place of an assistant message until all its items are known."""
