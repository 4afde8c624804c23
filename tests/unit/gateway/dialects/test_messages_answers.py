"""Answers of the Messages dialect, and their echoes."""

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.gateway.dialects.base import Answer, RefusalReason, RequestRefused, TurnRequest
from rollout.gateway.dialects.messages import MessagesDialect
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason
from tests.unit.gateway.dialects.messages_bodies import (
    QUESTION,
    answer_of,
    body_of,
    call_of,
    parsed_events,
    put_together,
)

FULL = answer_of("I add.", call_of(), call_of("{}", "call_2", "look_at"), reasoning="Two\ncalls.")
ANSWERS = {
    "everything": FULL,
    "text": answer_of("It is 3.5."),
    "only calls": answer_of("", call_of()),
    "only reasoning": answer_of("", reasoning="Hm."),
    "nothing": answer_of(),
    "the length": answer_of("It is", finish_reason=FinishReason.LENGTH),
    "a limit": answer_of("The limit of turns is used up.", limit=RolloutLimit.TURNS),
    "no JSON": answer_of("", call_of("{no JSON")),
    "no object": answer_of("", call_of("[1]")),
    "a long number": answer_of("", call_of('{"a": 123456789012345678901234567890}')),
    "deep": answer_of("", call_of('{"a":' * 300 + "1" + "}" * 300)),
    "half a surrogate pair": answer_of("", call_of('{"a": "\\ud83d"}')),
}


@pytest.fixture
def dialect() -> MessagesDialect:
    return MessagesDialect()


@pytest.fixture
def request_read(dialect: MessagesDialect) -> TurnRequest:
    return dialect.read(body_of(QUESTION))


def written(answer: Answer) -> dict[str, Any]:
    dialect = MessagesDialect()
    return dict(json.loads(dialect.write_answer(dialect.read(body_of(QUESTION)), answer)))


def test_an_answer_has_thinking_text_and_calls_in_this_order() -> None:
    message = written(FULL)
    thinking, *others = message["content"]
    assert thinking.pop("signature")
    assert thinking == {"type": "thinking", "thinking": "Two\ncalls."}
    assert others == [
        {"type": "text", "text": "I add.", "citations": None},
        {"type": "tool_use", "id": "call_1", "name": "add", "input": {"b": 2.0, "a": 1.5, "word": "café"}},
        {"type": "tool_use", "id": "call_2", "name": "look_at", "input": {}},
    ]


def test_an_answer_has_its_id_its_model_and_its_tokens() -> None:
    message = written(FULL)
    assert (message["id"], message["type"], message["role"], message["model"]) == (
        "msg_a1",
        "message",
        "assistant",
        "tiny",
    )
    assert message["usage"] == {
        "input_tokens": 40,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 60,
        "output_tokens": 20,
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [("text", "end_turn"), ("only calls", "tool_use"), ("the length", "max_tokens"), ("a limit", "end_turn")],
)
def test_the_stop_reason_says_why_the_answer_ended(name: str, reason: str) -> None:
    assert written(ANSWERS[name])["stop_reason"] == reason


def test_an_answer_that_a_stop_text_ended_names_it(dialect: MessagesDialect, request_read: TurnRequest) -> None:
    answer = answer_of("I look.")
    answer = replace(answer, choices=(replace(answer.choices[0], stop_text="\nResult:"),))
    message = written(answer)
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "\nResult:")
    [delta] = [
        event["delta"]
        for event in parsed_events(dialect.write_events(request_read, answer))
        if event["type"] == "message_delta"
    ]
    assert delta == {"stop_reason": "stop_sequence", "stop_sequence": "\nResult:"}


@pytest.mark.parametrize("name", ["only reasoning", "nothing"])
def test_an_answer_without_text_and_calls_has_an_empty_text(name: str) -> None:
    assert written(ANSWERS[name])["content"][-1] == {"type": "text", "text": "", "citations": None}


def test_a_text_of_the_gateway_is_marked() -> None:
    assert written(ANSWERS["a limit"])["rollout"] == {"limit": "turns"}


def test_an_answer_of_the_policy_is_not_marked() -> None:
    assert "rollout" not in written(FULL)


@pytest.mark.parametrize("name", ["no JSON", "no object", "deep", "half a surrogate pair"])
def test_arguments_that_are_no_usable_object_are_shown_as_none(name: str) -> None:
    assert written(ANSWERS[name])["content"][0]["input"] == {}


def test_a_client_gets_a_long_number_exactly() -> None:
    assert written(ANSWERS["a long number"])["content"][0]["input"] == {"a": 123456789012345678901234567890}


def test_events_come_in_the_official_order(dialect: MessagesDialect, request_read: TurnRequest) -> None:
    events = parsed_events(dialect.write_events(request_read, FULL))
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        *block[:2],
        *block[1:],
        *block,
        *block,
        *block,
        "message_delta",
        "message_stop",
    ]
    assert deltas == ["thinking_delta", "signature_delta", "text_delta", "input_json_delta", "input_json_delta"]


def test_a_stream_starts_without_content_and_without_a_stop_reason(
    dialect: MessagesDialect, request_read: TurnRequest
) -> None:
    start = parsed_events(dialect.write_events(request_read, FULL))[0]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 0)


@pytest.mark.parametrize("name", ANSWERS)
def test_the_events_make_the_same_message_as_the_json(
    dialect: MessagesDialect, request_read: TurnRequest, name: str
) -> None:
    events = parsed_events(dialect.write_events(request_read, ANSWERS[name]))
    assert put_together(events) == json.loads(dialect.write_answer(request_read, ANSWERS[name]))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_exact_echo_is_read_as_the_sent_message(
    dialect: MessagesDialect, request_read: TurnRequest, name: str, streamed: bool
) -> None:
    answer = ANSWERS[name]
    message = (
        put_together(parsed_events(dialect.write_events(request_read, answer)))
        if streamed
        else json.loads(dialect.write_answer(request_read, answer))
    )
    echo = {"role": "assistant", "content": message["content"]}
    found = MessagesDialect().read(body_of(QUESTION, echo, QUESTION)).messages[1]
    [sent] = dialect.sent_messages(request_read, answer)
    assert (found.message, found.exact_key, found.key) == (sent.message, sent.exact_key, sent.key)


def test_an_exact_echo_is_the_sent_object(dialect: MessagesDialect, request_read: TurnRequest) -> None:
    [sent] = dialect.sent_messages(request_read, FULL)
    echo = {"role": "assistant", "content": json.loads(dialect.write_answer(request_read, FULL))["content"]}
    assert dialect.read(body_of(QUESTION, echo, QUESTION)).messages[1] is sent


def test_a_changed_argument_is_another_message(dialect: MessagesDialect, request_read: TurnRequest) -> None:
    [sent] = dialect.sent_messages(request_read, FULL)
    content = json.loads(dialect.write_answer(request_read, FULL))["content"]
    content[2]["input"]["a"] = 1.25
    echo = {"role": "assistant", "content": content}
    assert dialect.read(body_of(QUESTION, echo, QUESTION)).messages[1].key != sent.key


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    text=st.text(), reasoning=st.text(), arguments=st.dictionaries(st.text(), _JSON, max_size=4), indent=st.booleans()
)
def test_any_exact_echo_is_read_as_the_sent_message(
    text: str, reasoning: str, arguments: dict[str, Any], indent: bool
) -> None:
    dialect = MessagesDialect()
    request = dialect.read(body_of(QUESTION))
    answer = answer_of(text, call_of(json.dumps(arguments, indent=2 if indent else None)), reasoning=reasoning)
    echo = {"role": "assistant", "content": json.loads(dialect.write_answer(request, answer))["content"]}
    found = MessagesDialect().read(body_of(QUESTION, echo, QUESTION)).messages[1]
    assert found.exact_key == dialect.sent_messages(request, answer)[0].exact_key


def test_two_answers_have_other_signatures() -> None:
    first = answer_of("", reasoning="Hm.")
    second = Answer("a2", first.created, first.choices, prompt_tokens=1)
    assert written(first)["content"][0]["signature"] != written(second)["content"][0]["signature"]


def test_a_token_count_has_the_input_tokens(dialect: MessagesDialect) -> None:
    assert orjson.loads(dialect.write_token_count(17)) == {"input_tokens": 17}


ERRORS = {
    RefusalReason.INVALID: "invalid_request_error",
    RefusalReason.TOO_LARGE: "request_too_large",
    RefusalReason.UNKNOWN_KEY: "authentication_error",
    RefusalReason.ENDED: "invalid_request_error",
    RefusalReason.NOT_FOUND: "not_found_error",
    RefusalReason.FAILED: "api_error",
}


@pytest.mark.parametrize("reason", RefusalReason)
def test_an_error_has_the_type_of_its_reason(dialect: MessagesDialect, reason: RefusalReason) -> None:
    found = orjson.loads(dialect.write_refusal(RequestRefused("It is wrong.", reason=reason)))
    assert found == {
        "type": "error",
        "error": {"type": ERRORS[reason], "message": "It is wrong."},
        "request_id": None,
    }


def test_an_error_in_a_stream_is_an_event(dialect: MessagesDialect, request_read: TurnRequest) -> None:
    refusal = RequestRefused("The engine failed.", reason=RefusalReason.FAILED)
    [event] = parsed_events(dialect.write_failure_events(request_read, refusal))
    assert event["error"] == {"type": "api_error", "message": "The engine failed."}
