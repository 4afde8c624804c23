"""How requests of the dialect Responses become conversations."""

from typing import Any

import orjson
import pytest
from hypothesis import given as given_any
from hypothesis import strategies as st

from rollout.gateway.dialects.base import RequestRefused
from rollout.gateway.dialects.responses import ResponsesDialect
from tests.unit.gateway.dialects.responses_requests import (
    ADD,
    CALLS,
    PIXEL,
    QUESTION,
    answer,
    body,
    messages,
    output,
    response,
)

USER = {"role": "user", "content": "What is 1.5 + 2?"}


@pytest.fixture
def dialect() -> ResponsesDialect:
    return ResponsesDialect()


def test_input_can_be_a_text(dialect: ResponsesDialect) -> None:
    assert messages(dialect.read(body())) == [USER]


def test_instructions_and_leading_developer_messages_are_one_system_message(dialect: ResponsesDialect) -> None:
    first = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]}
    second = {"role": "system", "content": "Be kind."}
    request = dialect.read(body([first, second, QUESTION], instructions="You add."))
    assert messages(request) == [{"role": "system", "content": "You add.\n\nBe brief.\n\nBe kind."}, USER]
    assert request.places == ["instructions", "input[2]"]


def test_the_parts_of_a_system_message_are_joined_by_a_blank_line(dialect: ResponsesDialect) -> None:
    parts = [{"type": "input_text", "text": "One."}, {"type": "input_text", "text": "Two."}]
    request = dialect.read(body([{"role": "developer", "content": parts}, QUESTION]))
    assert messages(request)[0]["content"] == "One.\n\nTwo."


def test_a_later_system_message_is_a_marked_user_message(dialect: ResponsesDialect) -> None:
    request = dialect.read(body([QUESTION, {"role": "developer", "content": "Hurry."}]))
    assert messages(request)[1]["role"] == "user"
    assert "Hurry." in messages(request)[1]["content"]
    assert messages(request)[1]["content"] != "Hurry."


def test_the_items_of_an_answer_are_one_assistant_message(dialect: ResponsesDialect) -> None:
    items = output(dialect, answer("I add.", CALLS, reasoning="Two calls."))
    request = dialect.read(body([QUESTION, *items]))
    assert messages(request)[1:] == [
        {
            "role": "assistant",
            "content": "I add.",
            "reasoning_content": "Two calls.",
            "tool_calls": [
                {"id": "call_a", "type": "function", "function": {"name": "add", "arguments": CALLS[0].arguments}},
                {"id": "call_b", "type": "function", "function": {"name": "add", "arguments": "{}"}},
            ],
        }
    ]
    assert request.places == ["input[0]", "input[1]"]


def test_a_result_is_a_message_of_a_tool(dialect: ResponsesDialect) -> None:
    items = output(dialect, answer(calls=CALLS[:1]))
    result = {"type": "function_call_output", "call_id": "call_a", "output": "3.5"}
    request = dialect.read(body([QUESTION, *items, result]))
    assert messages(request)[-1] == {"role": "tool", "content": "3.5", "tool_call_id": "call_a"}


def test_a_result_can_have_images(dialect: ResponsesDialect) -> None:
    parts = [
        {"type": "input_text", "text": "A square:"},
        {"type": "input_image", "image_url": PIXEL, "detail": "high"},
    ]
    result = {"type": "function_call_output", "call_id": "call_a", "output": parts}
    content = messages(dialect.read(body([QUESTION, *output(dialect, answer(calls=CALLS)), result])))[-1]["content"]
    assert content == [{"type": "text", "text": "A square:"}, {"type": "image_url", "image_url": {"url": PIXEL}}]


def test_a_message_after_an_answer_ends_it(dialect: ResponsesDialect) -> None:
    first = output(dialect, answer("First."))
    request = dialect.read(body([QUESTION, *first, QUESTION, {"role": "assistant", "content": "Second."}]))
    assert [(message["role"], message["content"]) for message in messages(request)[1:]] == [
        ("assistant", "First."),
        ("user", USER["content"]),
        ("assistant", "Second."),
    ]


def test_neighbouring_answers_are_two_messages(dialect: ResponsesDialect) -> None:
    first = output(dialect, answer("First.", id="a1"))
    second = output(dialect, answer(calls=CALLS, id="a2"))
    request = dialect.read(body([QUESTION, *first, *second]))
    assert [message["content"] for message in messages(request)[1:]] == ["First.", ""]


def test_results_between_parallel_calls_do_not_split_their_answer(dialect: ResponsesDialect) -> None:
    first, second = output(dialect, answer(calls=CALLS))
    results = [{"type": "function_call_output", "call_id": call.id, "output": call.id} for call in CALLS]
    request = dialect.read(body([QUESTION, first, results[0], second, results[1]]))
    assert [message["role"] for message in messages(request)] == ["user", "assistant", "tool", "tool"]
    assert len(messages(request)[1]["tool_calls"]) == 2


def test_the_same_items_give_the_same_message_objects(dialect: ResponsesDialect) -> None:
    result = {"type": "function_call_output", "call_id": "call_a", "output": "3.5"}
    system = {"role": "developer", "content": "Be brief."}
    items = [system, QUESTION, *output(dialect, answer(calls=CALLS[:1], reasoning="Add.")), result, system]
    first = dialect.read(body(items, tools=[ADD], instructions="You add."))
    second = dialect.read(body([*items, QUESTION], tools=[ADD], instructions="You add."))
    assert len(first.messages) == 5
    for before, after in zip(first.messages, second.messages, strict=False):
        assert after is before
    assert second.tools is first.tools


def sent_items() -> tuple[ResponsesDialect, list[dict[str, Any]]]:
    """Return a dialect that sent three answers, and items of all kinds, also those of the answers."""
    dialect = ResponsesDialect()
    items = [
        QUESTION,
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": "Made up."},
        {"type": "function_call", "call_id": "call_b", "name": "sub", "arguments": "{}"},
        {"type": "web_search_call", "id": "ws"},
        *({"type": "function_call_output", "call_id": call.id, "output": "3.5"} for call in CALLS),
    ]
    for turn, calls in enumerate((CALLS, CALLS[:1], ())):
        items += output(dialect, answer(f"Text {turn}", calls, reasoning="Hm.", id=f"a{turn}"))
    return dialect, items


ITEM_COUNT = len(sent_items()[1])


@given_any(
    base=st.lists(st.integers(0, ITEM_COUNT - 1), min_size=1, max_size=12),
    changes=st.lists(
        st.tuples(
            st.integers(0, 12), st.lists(st.integers(0, ITEM_COUNT - 1), max_size=4), st.sampled_from(["", "Add."])
        ),
        max_size=6,
    ),
)
def test_a_conversation_is_read_the_same_whatever_was_read_before(
    base: list[int], changes: list[tuple[int, list[int], str]]
) -> None:
    used, items = sent_items()
    for length, more, instructions in [(12, [], ""), *changes]:
        base = [*base[:length], *more] or [0]
        request = body([QUESTION, *(items[index] for index in base)], instructions=instructions)
        fresh = sent_items()[0].read(request)
        again = used.read(request)
        assert messages(again) == messages(fresh)
        assert again.places == fresh.places


def test_a_request_can_continue_an_earlier_answer(dialect: ResponsesDialect) -> None:
    first = dialect.read(body(instructions="You add."))
    given = response(dialect, first, answer(calls=CALLS[:1], reasoning="Add."))
    result = {"type": "function_call_output", "call_id": "call_a", "output": "3.5"}
    second = dialect.read(body([result], instructions="You add.", previous_response_id=given["id"]))
    whole = dialect.read(body([QUESTION, *given["output"], result], instructions="You add."))
    assert messages(second) == messages(whole)


def test_answers_continue_each_other_by_their_ids(dialect: ResponsesDialect) -> None:
    previous, texts = None, []
    for turn in range(5):
        request = dialect.read(body(f"Question {turn}", previous_response_id=previous))
        previous = response(dialect, request, answer(f"Answer {turn}", id=f"a{turn}"))["id"]
        texts += [f"Question {turn}", f"Answer {turn}"]
    assert [message["content"] for message in messages(dialect.read(body("", previous_response_id=previous)))] == [
        *texts,
        "",
    ]


def test_two_requests_can_continue_the_same_answer(dialect: ResponsesDialect) -> None:
    first = response(dialect, dialect.read(body()), answer("3.5"))["id"]
    for turn in range(3):
        request = dialect.read(body(f"And {turn}?", previous_response_id=first))
        response(dialect, request, answer("Yes.", id=f"b{turn}"))
        assert [message["content"] for message in messages(request)] == [USER["content"], "3.5", f"And {turn}?"]


def test_new_instructions_replace_those_of_the_answer_before(dialect: ResponsesDialect) -> None:
    first = response(dialect, dialect.read(body(instructions="Old.")), answer("3.5"))["id"]
    request = dialect.read(body("And?", instructions="New.", previous_response_id=first))
    assert [message["content"] for message in messages(request)] == ["New.", USER["content"], "3.5", "And?"]


def test_an_answer_of_another_attempt_cannot_be_continued(dialect: ResponsesDialect) -> None:
    other = response(ResponsesDialect(), dialect.read(body()), answer("3.5"))["id"]
    with pytest.raises(RequestRefused, match=other) as refused:
        dialect.read(body(previous_response_id=other))
    assert refused.value.parameter == "previous_response_id"


def test_reading_a_request_again_gives_the_same_answer_bytes(dialect: ResponsesDialect) -> None:
    given = answer("I add.", CALLS, reasoning="Two calls.")
    first = dialect.write_answer(dialect.read(body()), given)
    assert dialect.write_answer(dialect.read(body()), given) == first


def test_a_conversation_can_be_very_long(dialect: ResponsesDialect) -> None:
    request = dialect.read(body([QUESTION] * 3_000))
    assert (len(request.messages), request.places[0], request.places[-1]) == (3_000, "input[0]", "input[2999]")


def test_sampling_has_the_names_of_the_engine(dialect: ResponsesDialect) -> None:
    request = dialect.read(
        body(temperature=0.5, top_p=1, max_output_tokens=64, stop="END", seed=None, top_k=5, presence_penalty=-1)
    )
    assert request.sampling == {
        "temperature": 0.5,
        "top_p": 1,
        "max_tokens": 64,
        "stop": ["END"],
        "top_k": 5,
        "presence_penalty": -1,
    }


@pytest.mark.parametrize(
    ("fields", "key", "parameter", "value"),
    [
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}},
            "structured_outputs",
            "text.format",
            {"json": {"type": "object"}},
        ),
        ({"text": {"format": {"type": "json_object"}}}, "structured_outputs", "text.format", {"json_object": True}),
        ({"logit_bias": {"17": -100}}, "logit_bias", "logit_bias", {17: -100}),
        ({"tool_choice": "required"}, "tool_choice", "tool_choice", None),
        ({"tool_choice": {"type": "function", "name": "add"}}, "tool_choice", "tool_choice", None),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice", "tool_choice", None),
    ],
)
def test_what_changes_the_distribution_is_a_constraint(
    dialect: ResponsesDialect, fields: dict[str, object], key: str, parameter: str, value: object
) -> None:
    constraint = dialect.read(body(**fields)).constraints[key]
    assert (constraint.parameter, constraint.value) == (parameter, value)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": {"format": {"type": "text"}, "verbosity": "low"}},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": False},
        {"reasoning": {"effort": "high", "summary": "auto"}},
        {"store": False, "background": False, "conversation": None, "prompt": None},
        {"truncation": "auto", "metadata": {"a": "b"}, "client_metadata": {"a": "b"}, "prompt_cache_key": "k"},
    ],
)
def test_other_keys_are_accepted_and_change_nothing(dialect: ResponsesDialect, fields: dict[str, object]) -> None:
    request = dialect.read(body(**fields))
    assert (messages(request), request.constraints, request.sampling) == ([USER], {}, {})
    assert request.may_call_tools


def test_tool_choice_none_forbids_calls(dialect: ResponsesDialect) -> None:
    assert not dialect.read(body(tools=[ADD], tool_choice="none")).may_call_tools


def test_the_client_says_whether_it_wants_events_and_log_probs(dialect: ResponsesDialect) -> None:
    request = dialect.read(body(stream=True, include=["message.output_text.logprobs"]))
    assert (request.streamed, request.wants_logprobs, request.model) == (True, True, "tiny")
    assert not dialect.read(body()).streamed
    assert not dialect.read(body()).wants_logprobs


def test_a_body_on_many_lines_makes_events_on_one(dialect: ResponsesDialect) -> None:
    pretty = orjson.dumps(orjson.loads(body(tools=[ADD])), option=orjson.OPT_INDENT_2)
    for event in dialect.write_events(dialect.read(pretty), answer("3.5")):
        assert event.count(b"\n") == 3
