"""Remembers rendered conversations: each turn needs the text of the prompt before its answer, which is known already.

Conversations are found by a hash of their JSON. Their objects are not kept, so nobody can change them later, and `1`,
`1.0` and `True` are different, as they are in a template. Text with marks for control tokens is not JSON, and is not
remembered, because a mark has another meaning in the next call.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from renderers_adapter.checkpoint_template.chat_template import format_now

_MAX_TEXTS = 4096
_MAX_CHARACTERS = 16_000_000
"""The texts of the rollouts in flight, each character of which takes 1 to 4 bytes."""
_JSON_OPTIONS = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

Messages = Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Clock:
    """Formats the present time for a template, and knows what it answered.

    Attributes:
        answers: what was answered, by the format.
    """

    answers: dict[str, str] = field(default_factory=dict)

    def format_now(self, text_format: str) -> str:
        """Return the present time as text."""
        answer = self.answers[text_format] = format_now(text_format)
        return answer

    def answers_the_same(self) -> bool:
        """Whether the same questions have the same answers now."""
        return all(format_now(text_format) == answer for text_format, answer in self.answers.items())


class TextMemory:
    """The texts of the last conversations, for all renderers of one template. It is thread-safe."""

    def __init__(self, max_texts: int = _MAX_TEXTS, max_characters: int = _MAX_CHARACTERS) -> None:
        self._max_texts = max_texts
        self._max_characters = max_characters
        self._texts: OrderedDict[bytes, tuple[str, Clock]] = OrderedDict()
        self._character_count = 0
        self._lock = threading.Lock()

    def find(self, messages: Messages, tools: Messages | None) -> str | None:
        """Return the text that the template would write now for a conversation; None if it is not remembered."""
        key = _fingerprint(messages, tools)
        with self._lock:
            found = None if key is None else self._texts.get(key)
            if key is None or found is None or not found[1].answers_the_same():
                return None
            self._texts.move_to_end(key)
            return found[0]

    def add(self, messages: Messages, tools: Messages | None, text: str, clock: Clock) -> None:
        """Remember a text and the times in it, and forget those that were not used for the longest time."""
        key = _fingerprint(messages, tools)
        if key is None:
            return
        with self._lock:
            self._forget(key)
            self._texts[key] = text, clock
            self._character_count += len(text)
            while len(self._texts) > self._max_texts or self._character_count > self._max_characters:
                self._forget(next(iter(self._texts)))

    def _forget(self, key: bytes) -> None:
        if (forgotten := self._texts.pop(key, None)) is not None:
            self._character_count -= len(forgotten[0])


def _fingerprint(messages: Messages, tools: Messages | None) -> bytes | None:
    """Return what only equal conversations have in common; None if this one cannot be written as JSON."""
    try:
        text = orjson.dumps([messages, tools or None], option=_JSON_OPTIONS)
    except TypeError:
        return None
    return hashlib.sha256(text).digest()
