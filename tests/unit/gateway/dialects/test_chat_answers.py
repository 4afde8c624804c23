"""How answers are written in the dialect chat completions, whole and as chunks."""

import math
from typing import Any

import orjson
import pytest

from rollout.gateway.dialects.base import AnswerChoice, AnsweredCall, SampledToken
from rollout.gateway.dialects.chat import ChatDialect
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason
from tests.unit.gateway.dialects.chat_requests import CALLS, PATCH, answer, body, choice, completion, streamed

USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
PATCH_CALL = AnsweredCall("call_p", "apply_patch", '{ "input" : "+caf\\u00e9" }')
TOKENS = (SampledToken("3", -0.5), SampledToken(".5é", -math.inf))


def deltas(chunks: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    """Return what each chunk adds to a choice."""
    return [part["delta"] for chunk in chunks for part in chunk["choices"] if part["index"] == index]


def test_a_text_is_one_completion() -> None:
    assert completion(answer(choice("3.5"))) == {
        "id": "chatcmpl-a1",
        "object": "chat.completion",
        "created": 1_796_000_000,
        "model": "tiny",
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "3.5", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


def test_reasoning_and_calls_stand_beside_the_text() -> None:
    (part,) = completion(answer(choice("I add.", CALLS, reasoning="Hm.")))["choices"]
    assert part["message"] == {
        "role": "assistant",
        "content": "I add.",
        "refusal": None,
        "reasoning_content": "Hm.",
        "tool_calls": [
            {"id": call.id, "type": "function", "function": {"name": "add", "arguments": call.arguments}}
            for call in CALLS
        ],
    }
    assert part["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("given", "content"),
    [
        (choice(calls=CALLS), None),
        (choice("\n\n", CALLS), "\n\n"),
        (choice(reasoning="Hm."), ""),
        (choice(), ""),
    ],
)
def test_only_an_answer_of_calls_alone_has_no_content(given: AnswerChoice, content: str | None) -> None:
    assert completion(answer(given))["choices"][0]["message"]["content"] == content


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (choice("3.5"), "stop"),
        (choice(calls=CALLS), "tool_calls"),
        (choice("3.", finish_reason=FinishReason.LENGTH), "length"),
        (choice(calls=CALLS, finish_reason=FinishReason.LENGTH), "length"),
    ],
)
def test_the_finish_reason_is_that_of_the_api(given: AnswerChoice, reason: str) -> None:
    assert completion(answer(given))["choices"][0]["finish_reason"] == reason
    assert streamed(answer(given))[-1]["choices"][0]["finish_reason"] == reason


def test_each_choice_has_its_index() -> None:
    written = completion(answer(choice("3.5"), choice(calls=CALLS), choice("4")), n=3)
    assert [part["index"] for part in written["choices"]] == [0, 1, 2]
    assert [part["finish_reason"] for part in written["choices"]] == ["stop", "tool_calls", "stop"]
    assert written["usage"] == {**USAGE, "completion_tokens": 60, "total_tokens": 160}


@pytest.mark.parametrize("limit", [limit for limit in RolloutLimit if limit is not RolloutLimit.NONE])
def test_an_ending_of_the_gateway_is_marked(limit: RolloutLimit) -> None:
    given = answer(choice("The rollout is over."), limit=limit)
    assert completion(given)["rollout"] == {"limit": limit.value}
    assert completion(given)["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["rollout"] == {"limit": limit.value} for chunk in streamed(given))


def test_an_answer_of_the_policy_has_no_mark() -> None:
    assert "rollout" not in completion(answer(choice("3.5")))
    assert all("rollout" not in chunk for chunk in streamed(answer(choice("3.5"))))


def test_chunks_come_in_the_official_order() -> None:
    chunks = streamed(answer(choice("I add.", CALLS, reasoning="Hm.")), stream_options={"include_usage": True})
    usage = chunks.pop()
    assert deltas(chunks) == [
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning_content": "Hm."},
        {"content": "I add."},
        {
            "tool_calls": [
                {"index": 0, "id": "call_a", "type": "function", "function": {"name": "add", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": CALLS[0].arguments}}]},
        {
            "tool_calls": [
                {"index": 1, "id": "call_b", "type": "function", "function": {"name": "add", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 7 + ["tool_calls"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]) == ([], USAGE)


@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}])
def test_without_include_usage_no_chunk_has_usage(options: dict[str, Any]) -> None:
    chunks = streamed(answer(choice("3.5")), **options)
    assert all("usage" not in chunk for chunk in chunks)
    assert len(chunks) == 3


def test_every_chunk_has_the_head_of_the_answer() -> None:
    chunks = streamed(answer(choice("3.5", CALLS)), stream_options={"include_usage": True})
    heads = {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks}
    assert heads == {("chatcmpl-a1", "chat.completion.chunk", 1_796_000_000, "tiny")}


def test_the_first_chunk_of_an_answer_of_calls_has_no_content() -> None:
    chunks = streamed(answer(choice(calls=CALLS)))
    assert deltas(chunks)[0] == {"role": "assistant", "content": None, "refusal": None}
    assert all("content" not in delta for delta in deltas(chunks)[1:])


def test_an_empty_answer_has_a_role_and_an_end() -> None:
    assert deltas(streamed(answer(choice()))) == [{"role": "assistant", "content": "", "refusal": None}, {}]


def test_the_chunks_of_a_choice_come_together() -> None:
    chunks = streamed(answer(choice("3.5"), choice("4")), n=2)
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 0, 0, 1, 1, 1]
    assert deltas(chunks, 1)[1] == {"content": "4"}


def test_a_line_break_in_an_answer_does_not_break_an_event() -> None:
    given = answer(choice("a\n\ndata: [DONE]\r\n\u2028b", (AnsweredCall("call_a", "add", '{"a":\n1}'),)))
    chunks = streamed(given)
    assert deltas(chunks)[1] == {"content": "a\n\ndata: [DONE]\r\n\u2028b"}
    assert deltas(chunks)[3]["tool_calls"][0]["function"] == {"arguments": '{"a":\n1}'}


LOGPROBS = {
    "content": [
        {"token": "3", "bytes": [51], "logprob": -0.5, "top_logprobs": []},
        {"token": ".5é", "bytes": [46, 53, 195, 169], "logprob": -9999.0, "top_logprobs": []},
    ],
    "refusal": None,
}


def test_logprobs_are_given_to_those_who_ask() -> None:
    given = answer(choice("3.5é", tokens=TOKENS))
    assert completion(given, logprobs=True)["choices"][0]["logprobs"] == LOGPROBS
    assert completion(given)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("given", [choice("3.5é", tokens=TOKENS), choice(calls=CALLS, tokens=TOKENS)])
def test_one_chunk_of_a_choice_has_the_logprobs(given: AnswerChoice) -> None:
    chunks = streamed(answer(given, given), n=2, logprobs=True)
    found = [(chunk["choices"][0]["index"], chunk["choices"][0]["logprobs"]) for chunk in chunks]
    assert [pair for pair in found if pair[1] is not None] == [(0, LOGPROBS), (1, LOGPROBS)]


def test_without_logprobs_no_chunk_has_them() -> None:
    chunks = streamed(answer(choice("3.5é", tokens=TOKENS)))
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks)


def test_the_call_of_a_custom_tool_has_its_input() -> None:
    given = answer(choice(calls=(PATCH_CALL, *CALLS)))
    calls = completion(given, tools=[PATCH])["choices"][0]["message"]["tool_calls"]
    assert calls[0] == {"id": "call_p", "type": "custom", "custom": {"name": "apply_patch", "input": "+café"}}
    assert [call["type"] for call in calls] == ["custom", "function", "function"]
    assert [part for delta in deltas(streamed(given, tools=[PATCH]))[1:3] for part in delta["tool_calls"]] == [
        {"index": 0, "id": "call_p", "type": "custom", "custom": {"name": "apply_patch", "input": ""}},
        {"index": 0, "custom": {"input": "+café"}},
    ]


@pytest.mark.parametrize("arguments", ['{"patch": 1}', "{broken", '{"input": 5}', "[]", ""])
def test_a_custom_call_without_an_input_gives_its_arguments(arguments: str) -> None:
    given = answer(choice(calls=(AnsweredCall("call_p", "apply_patch", arguments),)))
    (call,) = completion(given, tools=[PATCH])["choices"][0]["message"]["tool_calls"]
    assert call["custom"]["input"] == arguments


def test_the_same_answer_has_the_same_bytes() -> None:
    dialect = ChatDialect()
    request = dialect.read(body(stream=True))
    given = answer(choice("3.5", CALLS, reasoning="Hm."))
    assert list(dialect.write_events(request, given)) == list(dialect.write_events(request, given))
    assert dialect.write_answer(request, given) == dialect.write_answer(request, given)


def test_the_name_of_the_model_is_repeated() -> None:
    dialect = ChatDialect()
    request = dialect.read(body(model="some/model \u00e9"))
    assert orjson.loads(dialect.write_answer(request, answer(choice("3.5"))))["model"] == "some/model \u00e9"
