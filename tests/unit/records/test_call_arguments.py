"""The arguments of tool calls as JSON text: which text becomes an object, and which stays as it is."""

from typing import Any

import pytest

from rollout.records.call_arguments import read_arguments, write_arguments
from rollout.records.messages import canonicalise
from rollout.value_limits import MAX_DEPTH, MAX_VALUES


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"b": 1, "a": [null, "\\u00e9"]}', {"b": 1, "a": [None, "é"]}),
        (" ", {}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('{"n": 18446744073709551615}', {"n": 2**64 - 1}),
        ('{"n": -9223372036854775808}', {"n": -(2**63)}),
        ('{"x": 0.1234567890123456789}', {"x": 0.12345678901234568}),
        ('{"id": "123456789012345678901234567890"}', {"id": "123456789012345678901234567890"}),
    ],
)
def test_an_object_is_read(text: str, arguments: dict[str, Any]) -> None:
    assert read_arguments(text) == arguments


@pytest.mark.parametrize(
    "text",
    [
        "{broken",
        "[1]",
        '"a"',
        "null",
        '{"n": NaN}',
        '{"s": "\\ud800"}',
        '{"n": 18446744073709551616}',
        '{"n": 100000000000000000000}',
        '{"n": %s}' % ("9" * 5000),
        '{"n": %s}' % ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)),
        '{"n": %s}' % ("[" * 5000 + "]" * 5000),
        f'{{"n": [{",".join("0" * (MAX_VALUES + 1))}]}}',
    ],
    ids=[
        *("broken", "list", "text", "null", "not a number", "half a character", "65 bits", "equal to a float"),
        *("no float", "deep", "very deep", "many"),
    ],
)
def test_text_that_no_record_can_hold_as_an_object_is_not_read(text: str) -> None:
    assert read_arguments(text) is None
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": text}}
    (message,) = canonicalise([{"role": "assistant", "content": "", "tool_calls": [call]}], ())
    assert message.message["tool_calls"] == [call]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({}, "{}"), ({"b": 1.0, "a": "é\n", "c": -0.0}, '{"b":1.0,"a":"é\\n","c":-0.0}')],
)
def test_arguments_are_written_compactly_in_their_order(arguments: dict[str, Any], text: str) -> None:
    assert write_arguments(arguments) == text
    assert read_arguments(text) == arguments


def test_the_canonical_form_of_json_text_is_that_of_the_object() -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}}
        for arguments in ({"n": 1, "m": "é"}, '{"m": "\\u00e9", "n": 1}')
    ]
    forms = canonicalise([{"role": "assistant", "content": "", "tool_calls": [call]} for call in calls], ())
    assert forms[0].digest == forms[1].digest
    assert forms[0].message == forms[1].message
