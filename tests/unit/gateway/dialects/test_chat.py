"""How requests of the dialect chat completions are read: the messages, and their order."""

import gc
from typing import Any

import orjson
import pytest

from rollout.gateway.dialects.base import Dialect
from rollout.gateway.dialects.chat import ChatDialect
from tests.unit.gateway.dialects.chat_requests import (
    ADD,
    CALL,
    IMAGE,
    PIXEL,
    QUESTION,
    body,
    messages,
    read,
    read_one,
)

RESULT = {"role": "tool", "tool_call_id": "call_a", "content": "3.5"}
ANSWER = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_it_is_a_dialect() -> None:
    dialect: Dialect = ChatDialect()
    assert dialect.name == "chat"


def test_a_question_is_the_same_message_in_the_session() -> None:
    request = read(QUESTION)
    assert messages(request) == [QUESTION]
    assert request.places == ["messages[0]"]
    assert request.model == "tiny"
    assert (request.tools, request.choices, request.streamed, request.may_call_tools) == (None, 1, False, True)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"type": "text", "text": "Hi"}], "Hi"),
        ([{"type": "input_text", "text": "Hi"}], "Hi"),
        ([{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}], "Hi"),
        ([], ""),
        ("", ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], None),
        ([{"type": "text", "text": "a"}, IMAGE], None),
    ],
)
def test_the_content_of_a_user_is_a_text_or_parts(content: Any, expected: str | None) -> None:
    read_content = read_one({"role": "user", "content": content}).message["content"]
    assert read_content == (content if expected is None else expected)


@pytest.mark.parametrize(
    "part",
    [
        IMAGE,
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}},
        {"type": "image_url", "image_url": PIXEL},
        {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
        {"type": "input_image", "image_url": {"url": PIXEL}},
    ],
)
@pytest.mark.parametrize("role", ["user", "tool"])
def test_an_image_has_one_form_however_it_is_sent(role: str, part: Any) -> None:
    message = read_one({"role": role, "tool_call_id": "call_a", "content": [part]}).message
    assert message["content"] == [IMAGE]


def test_the_name_of_a_user_is_kept() -> None:
    assert read_one({**QUESTION, "name": "Ada"}).message == {**QUESTION, "name": "Ada"}


def test_leading_system_messages_are_joined() -> None:
    request = read(
        {"role": "system", "content": "One."},
        {"role": "developer", "content": [{"type": "text", "text": "Two."}, {"type": "text", "text": "Three."}]},
        {"role": "system", "content": ""},
        QUESTION,
    )
    assert messages(request) == [{"role": "system", "content": "One.\n\nTwo.\n\nThree."}, QUESTION]
    assert request.places == ["messages[0]", "messages[3]"]


def test_a_developer_message_is_a_system_message() -> None:
    assert messages(read({"role": "developer", "content": "One."}, QUESTION))[0] == {
        "role": "system",
        "content": "One.",
    }


def test_an_empty_system_message_stays() -> None:
    assert messages(read({"role": "system", "content": ""}, QUESTION))[0] == {"role": "system", "content": ""}


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_later_system_message_is_marked_in_a_message_of_the_user(role: str) -> None:
    message = read_one({"role": role, "content": "Be brief."}).message
    assert message == {"role": "user", "content": "<system-message>\nBe brief.\n</system-message>"}


def test_the_same_system_message_can_lead_and_come_again() -> None:
    system = {"role": "system", "content": "Be brief."}
    lead, question, inner, _ = messages(read(system, QUESTION, system, QUESTION))
    assert (lead["role"], question, inner["role"]) == ("system", QUESTION, "user")


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {"content": []}, {}])
def test_an_answer_that_only_calls_tools_has_no_text(content: dict[str, Any]) -> None:
    message = read_one({"role": "assistant", "tool_calls": [CALL], **content}).message
    assert message == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    "extra",
    [
        {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": None},
        {"annotations": [], "tool_calls": [], "refusal": ""},
        {
            "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}],
            "provider_specific_fields": {},
        },
        {"reasoning_content": "", "reasoning": None, "reasoning_details": []},
        {"reasoning": {"effort": "low"}},
        {"id": "msg_1", "cache_control": {"type": "ephemeral"}, "parsed": None},
    ],
)
def test_extras_of_an_answer_are_ignored(extra: dict[str, Any]) -> None:
    message = read_one({"role": "assistant", "content": "3.5", **extra})
    assert message.exact_key == read_one({"role": "assistant", "content": "3.5"}).exact_key


@pytest.mark.parametrize(
    "extra",
    [
        {"reasoning_content": "Hm."},
        {"reasoning": "Hm."},
        {"reasoning_content": "Hm.", "reasoning": "Other."},
        {"reasoning_content": "", "reasoning": "Hm."},
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "3.5"}]},
        {
            "content": [{"type": "thinking", "thinking": "Other."}, {"type": "text", "text": "3.5"}],
            "reasoning": "Hm.",
        },
        {"content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "3.5"}], "reasoning": "Hm."},
    ],
)
def test_reasoning_is_read_under_each_of_its_names(extra: dict[str, Any]) -> None:
    message = read_one({"role": "assistant", "content": "3.5", **extra}).message
    assert message == {"role": "assistant", "content": "3.5", "reasoning_content": "Hm."}


@pytest.mark.parametrize(
    "item",
    [
        {"content": [{"type": "text", "text": "I can"}, {"type": "text", "text": "not."}]},
        {"content": [{"type": "output_text", "text": "I can"}, {"type": "refusal", "refusal": "not."}]},
        {"content": "I can", "refusal": "not."},
        {"content": None, "refusal": "I cannot."},
    ],
)
def test_the_text_of_an_answer_is_one_string(item: dict[str, Any]) -> None:
    assert read_one({"role": "assistant", **item}).message == {"role": "assistant", "content": "I cannot."}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"arguments": '{"a":  1}'}, '{"a":  1}'),
        ({"arguments": ""}, ""),
        ({"arguments": "{broken"}, "{broken"),
        ({"arguments": {"a": 1}}, '{"a":1}'),
        ({"arguments": None}, "{}"),
        ({}, "{}"),
    ],
)
def test_the_arguments_of_a_call_stay_a_text(arguments: dict[str, Any], expected: str) -> None:
    call = {"id": "call_a", "index": 0, "function": {"name": "add", **arguments}}
    message = read_one({"role": "assistant", "tool_calls": [call]}).message
    assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": expected}
    assert message["tool_calls"][0]["type"] == "function"


def test_the_call_of_a_custom_tool_is_that_of_a_function() -> None:
    call = {"id": "call_a", "type": "custom", "custom": {"name": "apply_patch", "input": "+é"}}
    (read_call,) = read_one({"role": "assistant", "tool_calls": [call]}).message["tool_calls"]
    assert read_call["function"] == {"name": "apply_patch", "arguments": '{"input":"+é"}'}


def test_consecutive_messages_of_the_assistant_stay_apart() -> None:
    answers = [{"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}]
    assert messages(read(QUESTION, *answers, QUESTION)) == [QUESTION, *answers, QUESTION]


def test_the_name_in_the_result_of_a_tool_is_kept() -> None:
    assert read_one({**RESULT, "name": "sum"}).message["name"] == "sum"


def test_the_result_of_a_tool_is_the_same_message_in_the_session() -> None:
    assert read_one(RESULT).message == RESULT


@pytest.mark.parametrize("content", [{"content": None}, {}, {"content": []}, {"content": ""}])
def test_a_tool_may_return_nothing(content: dict[str, Any]) -> None:
    message = read_one({"role": "tool", "tool_call_id": "call_a", **content}).message
    assert message == {"role": "tool", "tool_call_id": "call_a", "content": ""}


def test_the_result_of_a_tool_may_have_text_and_images() -> None:
    content = [{"type": "text", "text": "This is it:"}, IMAGE, IMAGE]
    assert read_one({**RESULT, "content": content}).message["content"] == content


def test_a_known_message_is_the_same_object_at_the_next_turn() -> None:
    dialect = ChatDialect()
    system = {"role": "system", "content": "One."}
    large = {"role": "user", "content": [IMAGE, {"type": "text", "text": "x" * 5000}]}
    history = [system, system, QUESTION, ANSWER, RESULT, system, large]
    first = dialect.read(body(*history, tools=[ADD]))
    second = dialect.read(body(*history, {"role": "assistant", "content": "3.5"}, QUESTION, tools=[ADD]))
    assert [id(message) for message in second.messages[:6]] == [id(message) for message in first.messages]
    assert second.tools is first.tools


def test_a_message_after_a_refused_request_is_known() -> None:
    dialect = ChatDialect()
    with pytest.raises(Exception, match=r"messages\[1\]"):
        dialect.read(body(QUESTION, {"role": "critic"}))
    assert messages(dialect.read(body(QUESTION))) == [QUESTION]


def test_the_place_in_an_error_is_that_of_this_request() -> None:
    dialect = ChatDialect()
    for index in (1, 3):
        with pytest.raises(Exception, match=rf"messages\[{index}\]\.role"):
            dialect.read(body(*[QUESTION] * index, {"role": "critic"}))


def test_places_count_on_after_a_longer_conversation() -> None:
    dialect = ChatDialect()
    dialect.read(body(*[QUESTION] * 5))
    assert dialect.read(body(QUESTION, QUESTION)).places == ["messages[0]", "messages[1]"]


def test_white_space_in_the_body_changes_nothing() -> None:
    pretty = orjson.dumps(orjson.loads(body(QUESTION, ANSWER, RESULT, tools=[ADD])), option=orjson.OPT_INDENT_2)
    request, compact = ChatDialect().read(pretty), read(QUESTION, ANSWER, RESULT, tools=[ADD])
    assert [message.exact_key for message in request.messages] == [message.exact_key for message in compact.messages]
    assert request.tools == compact.tools


def test_a_known_message_is_not_parsed_again() -> None:
    """Objects of a known conversation are made once: a second reading makes one list of places and one of messages."""
    dialect = ChatDialect()
    request = body(*[{**QUESTION, "content": f"{index}"} for index in range(2000)])
    dialect.read(request)
    gc.collect()
    before = len(gc.get_objects())
    second = dialect.read(request)
    gc.collect()
    assert len(gc.get_objects()) - before < 50
    assert len(second.messages) == 2000
