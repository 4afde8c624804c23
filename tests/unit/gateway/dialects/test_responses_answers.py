"""How answers are written as response objects and as events."""

from typing import Any

import orjson
import pytest

from rollout.gateway.dialects.base import Answer, AnswerChoice, AnsweredCall, SampledToken
from rollout.gateway.dialects.responses import ResponsesDialect
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason
from tests.unit.gateway.dialects.responses_requests import ADD, CALLS, answer, body, events, output, response

PATCH = {"type": "custom", "name": "apply_patch"}


def write(given: Answer, **fields: Any) -> dict[str, Any]:
    dialect = ResponsesDialect()
    return response(dialect, dialect.read(body(**fields)), given)


def stream(given: Answer, **fields: Any) -> list[dict[str, Any]]:
    dialect = ResponsesDialect()
    return events(dialect.write_events(dialect.read(body(stream=True, **fields)), given))


def test_an_answer_has_its_reasoning_text_and_calls_in_order() -> None:
    items = output(ResponsesDialect(), answer("I add.", CALLS, reasoning="Two calls."))
    assert [(item["type"], item["id"]) for item in items] == [
        ("reasoning", "rs_a1"),
        ("message", "msg_a1"),
        ("function_call", "fc_a1_0"),
        ("function_call", "fc_a1_1"),
    ]
    assert items[0]["summary"] == [{"type": "summary_text", "text": "Two calls."}]
    assert items[1]["content"] == [{"type": "output_text", "text": "I add.", "annotations": [], "logprobs": []}]
    assert [(item["call_id"], item["arguments"]) for item in items[2:]] == [(call.id, call.arguments) for call in CALLS]


def test_an_answer_with_calls_alone_has_no_message() -> None:
    assert [item["type"] for item in output(ResponsesDialect(), answer(calls=CALLS[:1]))] == ["function_call"]


def test_a_final_answer_always_has_a_message() -> None:
    items = output(ResponsesDialect(), answer("", reasoning="Hm."))
    assert [item["type"] for item in items] == ["reasoning", "message"]


def test_usage_counts_the_tokens() -> None:
    assert write(answer("3.5"))["usage"] == {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 0},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 120,
    }


def test_a_complete_answer_says_so() -> None:
    given = write(answer("3.5"))
    assert (given["id"], given["object"], given["status"]) == ("resp_a1", "response", "completed")
    assert (given["incomplete_details"], given["error"], given["model"]) == (None, None, "tiny")
    assert given["created_at"] == 1_796_000_000


def test_an_answer_that_was_cut_off_says_so() -> None:
    given = write(answer("3.", finish_reason=FinishReason.LENGTH))
    assert (given["status"], given["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert given["output"][0]["status"] == "incomplete"


def test_the_response_repeats_the_request() -> None:
    fields = {
        "tools": [ADD, {"type": "web_search"}],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "instructions": "You add.",
        "temperature": 0.25,
        "max_output_tokens": 64,
        "metadata": {"a": "b"},
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "store": False,
    }
    given = write(answer("3.5"), **fields)
    assert {key: given[key] for key in fields} == fields


def test_the_response_has_defaults_for_the_keys_that_the_request_lacks() -> None:
    given = write(answer("3.5"), tools=None, temperature=None)
    assert (given["tools"], given["tool_choice"], given["parallel_tool_calls"]) == ([], "auto", True)
    assert (given["temperature"], given["store"], given["previous_response_id"]) == (1.0, True, None)


def test_encrypted_reasoning_is_given_only_if_it_is_wanted() -> None:
    given = answer("3.5", reasoning="Add.")
    assert output(ResponsesDialect(), given)[0]["encrypted_content"] is None
    wanted = output(ResponsesDialect(), given, include=["reasoning.encrypted_content"])
    assert isinstance(wanted[0]["encrypted_content"], str)


def test_the_text_of_the_gateway_is_marked_in_every_response_object() -> None:
    given = answer("The rollout has used up its turns.", limit=RolloutLimit.TURNS)
    assert write(given)["rollout"] == {"limit": "turns"}
    marked = [event["response"]["rollout"] for event in stream(given) if "response" in event]
    assert marked == [{"limit": "turns"}] * 3


def test_an_answer_of_the_policy_has_no_mark() -> None:
    assert "rollout" not in write(answer("3.5"))


def test_log_probs_are_at_the_text() -> None:
    choice = AnswerChoice("é", "", (), FinishReason.STOP, 1, (SampledToken("é", -0.5),))
    given = write(Answer("a1", 1, (choice,), 1), include=["message.output_text.logprobs"])
    assert given["output"][0]["content"][0]["logprobs"] == [
        {"token": "é", "bytes": [195, 169], "logprob": -0.5, "top_logprobs": []}
    ]


def test_events_come_in_the_official_order() -> None:
    kinds = [event["type"].removeprefix("response.") for event in stream(answer("I add.", CALLS[:1], reasoning="Hm."))]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]


def test_a_custom_call_has_events_of_its_own() -> None:
    calls = (AnsweredCall("call_a", "apply_patch", '{"input": "x"}'),)
    sent = stream(answer(calls=calls), tools=[PATCH])
    assert [event["type"] for event in sent[3:5]] == [
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
    ]
    assert sent[4]["input"] == "x"


def test_events_are_numbered_from_zero() -> None:
    sent = stream(answer("I add.", CALLS, reasoning="Hm."))
    assert [event["sequence_number"] for event in sent] == list(range(len(sent)))


def test_the_last_event_holds_the_whole_response() -> None:
    given = answer("I add.", CALLS, reasoning="Hm.")
    assert stream(given)[-1]["response"] == write(given, stream=True)


def test_the_first_events_hold_no_output() -> None:
    first = stream(answer("3.5"))[0]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)


def test_a_stream_that_was_cut_off_ends_with_incomplete() -> None:
    assert stream(answer("3.", finish_reason=FinishReason.LENGTH))[-1]["type"] == "response.incomplete"


@pytest.mark.parametrize("kind", ["write_answer", "write_events"])
def test_an_answer_can_be_continued_however_it_was_sent(kind: str) -> None:
    dialect = ResponsesDialect()
    request = dialect.read(body())
    written = getattr(dialect, kind)(request, answer("3.5"))
    assert written
    next_request = dialect.read(body("And?", previous_response_id="resp_a1"))
    assert [message.role for message in next_request.messages] == ["user", "assistant", "user"]


def test_letters_of_all_languages_survive() -> None:
    text = "é 中 😀 \u2028 \x00"
    assert orjson.loads(orjson.dumps(stream(answer(text))[-1]))["response"]["output"][0]["content"][0]["text"] == text
