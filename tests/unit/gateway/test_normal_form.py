"""The normal form of messages: what clients change in an echo does not count, and every value does."""

from typing import Any

import pytest

from rollout.gateway.dialects.normal_form import incoming_message
from tests.unit.gateway.client_messages import assistant

DEEP = "[" * 300 + "]" * 300


def key_of_call(arguments: str) -> bytes:
    """Return the key of a message that only calls a tool."""
    return assistant("", ("c", "f", arguments)).key


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        ('{"a": 1, "b": [1, 2]}', '{"b":[1,2],"a":1}'),
        ('{"a": "é\\n"}', '{"a": "\\u00e9\\u000a"}'),
        ('{"a": 2.0}', '{"a": 2}'),
        ('{"a": 1e20}', '{"a": 100000000000000000000}'),
        ('{"a": 0.1}', '{"a": 1e-1}'),
        ("{}", ""),
        ("{}", " {} "),
        ('{"a": "\\ud83d"}', '{"a":"\\ud83d"}'),
        ('{"a": 123456789012345678901234567890}', '{"a":123456789012345678901234567890}'),
    ],
)
def test_another_form_of_the_arguments_has_the_same_key(arguments: str, same: str) -> None:
    assert key_of_call(arguments) == key_of_call(same)


@pytest.mark.parametrize(
    ("arguments", "other"),
    [
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 0}', '{"a": null}'),
        ('{"a": NaN}', '{"a": null}'),
        ('{"a": Infinity}', '{"a": null}'),
        ('{"a": 9007199254740993}', '{"a": 9007199254740992}'),
        ('{"a": 123456789012345678901234567890}', '{"a": 123456789012345678901234567891}'),
        ('{"a": [1, 2]}', '{"a": [2, 1]}'),
        ('{"a": {}}', '{"a": []}'),
        ("text", '"text"'),
        ("{}", "null"),
        (DEEP, DEEP.replace("[]", '["x"]')),
    ],
)
def test_another_value_of_the_arguments_has_another_key(arguments: str, other: str) -> None:
    assert key_of_call(arguments) != key_of_call(other)


@pytest.mark.parametrize("arguments", [DEEP, "[" * 100_000, "1" * 10_000, '{"a": '])
def test_arguments_that_cannot_be_compared_as_values_are_compared_as_text(arguments: str) -> None:
    assert key_of_call(arguments) != key_of_call(arguments + " ")


@pytest.mark.parametrize(
    "changed",
    [
        {"role": "assistant", "content": "Yes."},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}], "reasoning_content": "Hm."},
        {"role": "assistant", "content": "\n Yes.\n", "reasoning_content": "Hm."},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm.", "name": "agent"},
    ],
)
def test_a_changed_echo_has_the_same_key_and_another_exact_key(changed: dict[str, Any]) -> None:
    sent = incoming_message({"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."})
    echo = incoming_message(changed)
    assert echo.key == sent.key
    assert echo.exact_key != sent.exact_key


@pytest.mark.parametrize(
    "other",
    [
        {"role": "user", "content": "Yes. "},
        {"role": "user", "content": "Yes.", "name": "Ada"},
        {"role": "system", "content": "Yes."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
    ],
)
def test_another_message_that_is_not_sampled_has_another_key(other: dict[str, Any]) -> None:
    assert incoming_message(other).key != incoming_message({"role": "user", "content": "Yes."}).key


def test_the_id_and_the_name_of_a_result_do_not_change_its_key() -> None:
    results = [
        {"role": "tool", "content": "done", "tool_call_id": "a"},
        {"role": "tool", "content": "done", "tool_call_id": "b", "name": "f"},
    ]
    assert incoming_message(results[0]).key == incoming_message(results[1]).key
