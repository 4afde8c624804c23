"""Finds out which part of a rendered text comes from which message.

A template joins its own text with the texts of messages. To find the parts, the conversation is rendered a second time
with marks around each content, at each reasoning and at the last call. Without the marks, both texts must be equal: a
template that reacts to a mark gets fewer marks.

    spans = find_spans(plain_text, render(mark_messages(messages)))
    boundaries = message_boundaries(plain_text, messages, spans, stop_pattern)
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

_FIRST_MARK = 0xF0000
_ANY_MARK = re.compile("[\U000f0000-\U0010ffff]")
"""Characters that no standard gives a meaning. A text that contains one gets no marks."""


class Mark(IntEnum):
    """The marks of a message.

    Attributes:
        BEGIN: before the content.
        END: after the content.
        CALL: after the name of the last call.
        REASONING: before the reasoning.
    """

    BEGIN = 0
    END = 1
    CALL = 2
    REASONING = 3


_MAX_MARKED_MESSAGES = (0x110000 - _FIRST_MARK) // len(Mark)


@dataclass(frozen=True, slots=True)
class MessageSpan:
    """The part of a rendered text that surely comes from one message.

    Attributes:
        begin: the position of the first character.
        end: the position after the last character.
        content: the span of the message's content; None if the template does not write it.
    """

    begin: int
    end: int
    content: tuple[int, int] | None


Spans = Mapping[int, MessageSpan]
"""The spans of messages by their index, in the order of the text. Messages without a text have none."""

Renders = Callable[[Sequence[Mapping[str, Any]]], str]
"""Renders a conversation to text."""


def locate_messages(messages: Sequence[Mapping[str, Any]], text: str, render: Renders) -> Spans:
    """Return the spans of the messages in their rendered text. `render` is called with marked messages.

    Spans of messages that the template moves are left out, so the spans are in the order of the messages.
    """
    if not contains_marks(text) and len(messages) <= _MAX_MARKED_MESSAGES:
        for marks_answers in (True, False):
            try:
                marked_text = render(mark_messages(messages, marks_answers=marks_answers))
            except Exception:  # noqa: BLE001, S112 - a template may refuse marks, and with any error
                continue
            if without_marks(marked_text) == text:
                return find_spans(marked_text)
    return {}


def mark_messages(
    messages: Sequence[Mapping[str, Any]], first_index: int = 0, *, marks_answers: bool = True
) -> list[dict[str, Any]]:
    """Return the messages with marks in their contents and calls; the first message has the index `first_index`."""
    return [
        dict(message) if message["role"] == "assistant" and not marks_answers else _mark_message(message, index)
        for index, message in enumerate(messages, first_index)
    ]


def mark_empty_message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return a message without a text, or with white space alone, with marks before its text."""
    marks = f"{_mark_of(Mark.BEGIN, index)}{_mark_of(Mark.END, index)}"
    content = message["content"]
    marked = f"{marks}{content}" if isinstance(content, str) else [{"type": "text", "text": marks}, *content]
    return {**message, "content": marked}


def contains_marks(text: str) -> bool:
    """Whether a text contains marks, or characters that would be taken for marks."""
    return _ANY_MARK.search(text) is not None


def first_mark(text: str, first_index: int = 0) -> int | None:
    """Return the position of the first mark of the messages from `first_index` on; None if there is none."""
    first = _FIRST_MARK + len(Mark) * first_index
    return next((found.start() for found in _ANY_MARK.finditer(text) if ord(found[0]) >= first), None)


def find_mark(text: str, mark: Mark, index: int = 0) -> int | None:
    """Return the position of a mark of one message; None if it is not there, or there more than once."""
    character = _mark_of(mark, index)
    return text.index(character) if text.count(character) == 1 else None


def without_marks(marked_text: str) -> str:
    """Return a text without its marks."""
    return _ANY_MARK.sub("", marked_text)


def find_spans(marked_text: str, first_index: int = 0) -> dict[int, MessageSpan]:
    """Return the spans of the messages from `first_index` on, in the text without marks."""
    found: dict[int, dict[int, int]] = {}
    for mark_count, mark in enumerate(_ANY_MARK.finditer(marked_text)):
        index, kind = divmod(ord(mark[0]) - _FIRST_MARK, len(Mark))
        if index >= first_index:
            found.setdefault(index, {}).setdefault(kind, mark.start() - mark_count)
    spans: dict[int, MessageSpan] = {}
    last_index, last_end = -1, 0
    for index, positions in found.items():
        begin, end = min(positions.values()), max(positions.values())
        if index > last_index and begin >= last_end:
            has_content = Mark.BEGIN in positions and Mark.END in positions
            content = (positions[Mark.BEGIN], positions[Mark.END]) if has_content else None
            spans[index] = MessageSpan(begin, end, content)
            last_index, last_end = index, end
    return spans


def message_boundaries(
    text: str, roles: Sequence[str], spans: Spans, end_pattern: re.Pattern[str], first_index: int = 0
) -> list[int]:
    """Return the position at which each message's part of a text ends; the generation prompt follows the last.

    A message ends with the first end token after its content and the white space after this token. An answer ends
    with the token itself, as it does if the policy samples it. A text without an end token belongs to the next message.
    """
    ends: list[int] = []
    at = 0
    indices = [index for index in spans if index >= first_index]
    if not indices:  # no message can be told from the next one, so the first gets the text of all
        cuts = _cuts(text, 0, len(text), end_pattern)
        return [cuts[-1][1] if cuts else 0] * len(roles)
    for index, next_index in zip(indices, (*indices[1:], None), strict=True):
        here = index - first_index
        ends += [at] * (here - len(ends))  # messages without a text of their own
        limit = len(text) if next_index is None else spans[next_index].begin
        following = len(roles) if next_index is None else next_index - first_index
        cuts = _cuts(text, spans[index].end, limit, end_pattern)
        owners = roles[here:following]
        if len(cuts) < len(owners):
            cuts = [cuts[0] if cuts else (spans[index].end, spans[index].end)] * len(owners)
        for role, (token_end, white_space_end) in zip(owners, cuts, strict=False):
            at = max(at, token_end if role == "assistant" else white_space_end)
            ends.append(at)
    return ends + [at] * (len(roles) - len(ends))


def _cuts(text: str, begin: int, end: int, end_pattern: re.Pattern[str]) -> list[tuple[int, int]]:
    """Return the position after each end token, and the position after the white space that follows it."""
    cuts = []
    for token in end_pattern.finditer(text, begin, end):
        after = token.end()
        while after < end and text[after].isspace():
            after += 1
        cuts.append((token.end(), after))
    return cuts


def _mark_of(mark: Mark, index: int) -> str:
    return chr(_FIRST_MARK + len(Mark) * index + mark)


def _mark_message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    begin, end = _mark_of(Mark.BEGIN, index), _mark_of(Mark.END, index)
    marked = dict(message)
    content = message["content"]
    if isinstance(content, str):
        marked["content"] = _mark_text(content, begin, end)
    elif content:
        parts = [dict(part) for part in content]
        parts[0]["text"] = _mark_text(parts[0]["text"], begin, "")
        parts[-1]["text"] = _mark_text(parts[-1]["text"], "", end)
        marked["content"] = parts
    for key in ("reasoning_content", "reasoning"):
        if reasoning := message.get(key):
            marked[key] = _mark_text(reasoning, _mark_of(Mark.REASONING, index), "")
    if calls := message.get("tool_calls"):
        function = dict(calls[-1]["function"])
        function["name"] = f"{function['name']}{_mark_of(Mark.CALL, index)}"
        marked["tool_calls"] = [*calls[:-1], {**calls[-1], "function": function}]
    return marked


def _mark_text(text: str, begin: str, end: str) -> str:
    """Return a text with marks within its white space, which templates may remove. An empty text gets no marks."""
    core = text.strip()
    if not core:
        return text
    at = text.index(core)
    return f"{text[:at]}{begin}{core}{end}{text[at + len(core) :]}"
