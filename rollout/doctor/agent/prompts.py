"""Compares the prompts of requests: what a program changed in messages that it had sent before."""

import datetime
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import orjson

from rollout.doctor.agent.observed import ObservedTurn
from rollout.gateway.dialects.normal_form import content_text
from rollout.records.messages import Message

_SHOWN_CHARS = 24
_DATE_FORMS = ("%Y-%m-%d", "%B %d, %Y", "%B %-d, %Y", "%a %b %d %Y", "%d %B %Y", "%m/%d/%Y", "%-m/%-d/%Y", "%Y/%m/%d")


def history_change(earlier: ObservedTurn, later: ObservedTurn) -> str | None:
    """Return what a later request changed in the messages of an earlier one, without its answers; None: nothing."""
    old_messages, new_messages = _unsampled(earlier.messages), _unsampled(later.messages)
    for (index, old), found in zip_longest(old_messages, new_messages[: len(old_messages)]):
        if found is None:
            return f"{_place(index, old)} is gone"
        if old["role"] != found[1]["role"] or old.get("content") != found[1].get("content"):
            return f"{_place(index, old)}: {_difference(_text(old), _text(found[1]))}"
    return None


def _unsampled(messages: Sequence[Message]) -> list[tuple[int, Message]]:
    return [(index, message) for index, message in enumerate(messages) if message["role"] != "assistant"]


def prompt_difference(one: Sequence[Message], other: Sequence[Message]) -> str | None:
    """Return how the first prompts of two rollouts of a task differ; None if they are the same."""
    for index, (old, new) in enumerate(zip_longest(one, other)):
        if old is None or new is None:
            return "another number of messages"
        if old != new:
            return f"{_place(index, old)}: {_difference(_text(old), _text(new))}"
    return None


def dated_place(messages: Sequence[Message]) -> str | None:
    """Return the first message that has the date of today; None if there is none."""
    today = datetime.datetime.now(tz=datetime.UTC).astimezone()
    forms = [today.strftime(form) for form in _DATE_FORMS]
    for index, message in enumerate(messages):
        text = content_text(message.get("content"))
        if any(form in text for form in forms):
            return _place(index, message)
    return None


def _place(index: int, message: Message) -> str:
    return f"message {index} ({message['role']})"


def _text(message: Message) -> str:
    content: Any = message.get("content")
    return content if isinstance(content, str) else orjson.dumps(content, default=str).decode()


def _difference(old: str, new: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    start = max(0, at - _SHOWN_CHARS // 2)
    return f"'{_shown(old, start)}' became '{_shown(new, start)}' at character {at}"


def _shown(text: str, start: int) -> str:
    cut = text[start : start + _SHOWN_CHARS].replace("\n", " ")
    return f"{'…' if start else ''}{cut}{'…' if start + _SHOWN_CHARS < len(text) else ''}"
