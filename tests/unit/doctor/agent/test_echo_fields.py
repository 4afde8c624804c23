"""What was changed in an echo, field by field, in each dialect."""

import json
from typing import Any

import pytest

from rollout.doctor.agent.echo_fields import compare_echoes
from rollout.doctor.agent.observed import ObservedTurn, SentCall
from rollout.doctor.agent.raw_answers import read_raw_answers
from rollout.records.kinds import PromptSource

ARGUMENTS = {"b": 1.0, "a": "é"}
TURN = ObservedTurn(
    number=0,
    messages=(),
    tool_names=("weigh",),
    echo=None,
    source=PromptSource.FIRST,
    root=0,
    prompt_tokens=1,
    text="I weigh. (doctor-step-0)",
    reasoning="Two. (doctor-step-0r)",
    calls=(SentCall("call-0-0", "weigh", ARGUMENTS, '{"b":1.0,"a":"é"}'),),
)


def findings(dialect: str, messages: list[dict[str, Any]]) -> dict[str, str]:
    """Return what a request with these messages did, by field."""
    body = json.dumps({"input" if dialect == "responses" else "messages": messages}).encode()
    return {found.name: found.finding for found in compare_echoes([TURN], read_raw_answers(dialect, body))}


def chat_message(arguments: str, **changes: Any) -> dict[str, Any]:
    call = {"id": "call-0-0", "type": "function", "function": {"name": "weigh", "arguments": arguments}}
    message = {"role": "assistant", "content": TURN.text, "reasoning_content": TURN.reasoning, "tool_calls": [call]}
    return message | changes


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        ('{"b":1.0,"a":"é"}', "identical"),
        ('{"b": 1.0, "a": "é"}', "written again (white space)"),
        ('{"b":1.0,"a":"\\u00e9"}', "written again (escapes)"),
        ('{"a":"é","b":1.0}', "written again (key order)"),
        ('{"b":1,"a":"é"}', "written again (1.0 as 1)"),
        ('{"b":1.0,"a":"e"}', "edited: a changed"),
        ('{"b":1.0,"a":"é","c":0}', "edited: c added"),
        ('{"b":1.0}', "edited: a dropped"),
        ("{'b': 1.0}", "no JSON any more"),
    ],
)
def test_arguments_of_chat_completions(arguments: str, finding: str) -> None:
    assert findings("chat", [chat_message(arguments)])["arguments"] == finding


@pytest.mark.parametrize(
    ("changes", "field", "finding"),
    [
        ({"content": None}, "text", "dropped"),
        ({"content": "\n" + TURN.text}, "text", "other white space around it"),
        ({"content": [{"type": "text", "text": TURN.text}]}, "text", "identical"),
        ({"content": TURN.text + " Edited."}, "text", "something added to it"),
        ({"reasoning_content": None}, "reasoning", "dropped"),
        ({"reasoning_content": None, "reasoning": TURN.reasoning}, "reasoning", "kept (reasoning)"),
        ({"reasoning_content": None, "content": TURN.reasoning + TURN.text}, "reasoning", "moved into the text"),
        ({"tool_calls": []}, "calls", "some dropped"),
    ],
)
def test_text_and_reasoning_of_chat_completions(changes: dict[str, Any], field: str, finding: str) -> None:
    assert findings("chat", [chat_message(TURN.calls[0].text, **changes)])[field] == finding


def test_an_answer_in_two_messages() -> None:
    thoughts = {"role": "assistant", "content": "", "reasoning_content": TURN.reasoning}
    rest = chat_message(TURN.calls[0].text, reasoning_content=None)
    assert findings("chat", [thoughts, rest])["form"] == "one answer becomes 2 messages"


def test_objects_and_blocks_of_messages() -> None:
    blocks: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": TURN.reasoning, "signature": "s"},
        {"type": "text", "text": TURN.text},
        {"type": "tool_use", "id": "call-0-0", "name": "weigh", "input": {"a": "é", "b": 1}},
    ]
    assert findings("messages", [{"role": "assistant", "content": blocks}]) == {
        "text": "identical",
        "reasoning": "kept (a thinking block with its signature)",
        "arguments": "an object (key order, 1.0 as 1)",
        "ids": "kept",
    }


def test_items_of_responses() -> None:
    items: list[dict[str, Any]] = [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": TURN.reasoning}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": TURN.text}]},
        {"type": "function_call", "call_id": "other", "name": "weigh", "arguments": TURN.calls[0].text},
        {"type": "function_call_output", "call_id": "other", "output": "2"},
    ]
    assert findings("responses", items) == {
        "text": "identical",
        "reasoning": "kept (summary of a reasoning item)",
        "arguments": "identical",
        "ids": "changed",
    }


def test_an_answer_that_is_not_repeated_gives_no_findings() -> None:
    assert findings("chat", [{"role": "assistant", "content": "Another."}, {"role": "user", "content": "?"}]) == {}
