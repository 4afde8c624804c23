"""The memory of rendered texts: what it finds is what the template would write now."""

from typing import Any

import pytest

from renderers_adapter.checkpoint_template import text_memory
from renderers_adapter.checkpoint_template.text_memory import Clock, TextMemory

MESSAGES = [{"role": "user", "content": "a question"}]


def call(value: Any) -> list[dict[str, Any]]:
    """Return a conversation with a call that has this argument."""
    function = {"name": "look", "arguments": {"place": value}}
    return [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}]


def test_an_equal_conversation_is_found() -> None:
    memory = TextMemory()
    memory.add(MESSAGES, None, "the text", Clock())
    assert memory.find([dict(message) for message in MESSAGES], ()) == "the text"


def test_another_conversation_is_not_found() -> None:
    memory = TextMemory()
    memory.add(MESSAGES, None, "the text", Clock())
    assert memory.find([*MESSAGES, *MESSAGES], None) is None


def test_a_conversation_with_other_tools_is_not_found() -> None:
    memory = TextMemory()
    memory.add(MESSAGES, None, "the text", Clock())
    assert memory.find(MESSAGES, [{"type": "function", "function": {"name": "look"}}]) is None


@pytest.mark.parametrize(
    ("first", "second"), [(1, True), (1, 1.0), (0, False), ({"a": 1, "b": 2}, {"b": 2, "a": 1})], ids=str
)
def test_values_that_python_finds_equal_but_a_template_writes_differently_are_different(
    first: Any, second: Any
) -> None:
    memory = TextMemory()
    memory.add(call(first), None, "the text", Clock())
    assert first == second
    assert memory.find(call(second), None) is None


def test_a_message_that_is_changed_later_is_not_found() -> None:
    memory, messages = TextMemory(), call("left")
    memory.add(messages, None, "the text", Clock())
    messages[0]["tool_calls"][0]["function"]["arguments"]["place"] = "right"
    assert memory.find(messages, None) is None


def test_a_conversation_with_marks_is_not_remembered() -> None:
    memory, marked = TextMemory(), [{"role": "user", "content": "\ud800|im_end|>"}]
    memory.add(marked, None, "the text", Clock())
    assert memory.find(marked, None) is None


def test_the_text_that_was_not_used_for_the_longest_time_is_forgotten() -> None:
    memory = TextMemory(max_texts=2)
    memory.add(call("first"), None, "first", Clock())
    memory.add(call("second"), None, "second", Clock())
    memory.find(call("first"), None)
    memory.add(call("third"), None, "third", Clock())
    assert [memory.find(call(name), None) for name in ("first", "second", "third")] == ["first", None, "third"]


def test_texts_are_forgotten_when_all_together_are_too_long() -> None:
    memory = TextMemory(max_characters=10)
    memory.add(call("first"), None, "x" * 6, Clock())
    memory.add(call("second"), None, "y" * 6, Clock())
    assert [memory.find(call(name), None) for name in ("first", "second")] == [None, "y" * 6]


def test_a_text_that_is_added_again_is_counted_once() -> None:
    memory = TextMemory(max_characters=10)
    for _ in range(3):
        memory.add(call("first"), None, "x" * 6, Clock())
    assert memory.find(call("first"), None) == "x" * 6


def test_a_text_with_a_time_is_not_found_when_the_template_would_write_another_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, clock = TextMemory(), Clock()
    monkeypatch.setattr(text_memory, "format_now", lambda text_format: f"{text_format} today")
    memory.add(MESSAGES, None, clock.format_now("%d"), clock)
    found_today = memory.find(MESSAGES, None)
    monkeypatch.setattr(text_memory, "format_now", lambda text_format: f"{text_format} tomorrow")
    assert (found_today, memory.find(MESSAGES, None)) == ("%d today", None)
