"""Requests of the Messages dialect are read into messages of a session."""

import json
from typing import Any

import pytest

from rollout.gateway.dialects.base import Constraint, TurnRequest
from rollout.gateway.dialects.messages import MessagesDialect
from tests.unit.gateway.dialects.messages_bodies import IMAGE, IMAGE_PART, QUESTION, body_of

CACHED = {"cache_control": {"type": "ephemeral"}}
USER = {"role": "user", "content": "What is 1.5 + 2?"}
CALL = {"type": "tool_use", "id": "call_1", "name": "add", "input": {"b": 2.0, "a": 1}}
OTHER_CALL = {"type": "tool_use", "id": "call_2", "name": "look_at", "input": {}}
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}
FUNCTION = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}


def read(*messages: Any, **keys: Any) -> TurnRequest:
    return MessagesDialect().read(body_of(*messages, **keys))


def messages_of(*messages: Any, **keys: Any) -> list[dict[str, Any]]:
    return [item.message for item in read(*messages, **keys).messages]


def result(call_id: str = "call_1", **keys: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, **keys}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str, **keys: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **keys}


@pytest.mark.parametrize("content", ["What is 1.5 + 2?", [text("What is 1.5 + 2?", **CACHED)]])
def test_one_text_block_is_the_same_as_a_string(content: Any) -> None:
    assert messages_of({"role": "user", "content": content}) == [USER]


def test_several_blocks_of_a_user_stay_parts_in_their_order() -> None:
    found = messages_of(user(text("one"), IMAGE, text("two", **CACHED)))
    assert found[0]["content"] == [text("one"), IMAGE_PART, text("two")]


@pytest.mark.parametrize("system", ["Be kind.\n\nBe brief.", [text("Be kind.", **CACHED), text("Be brief.")]])
def test_the_system_prompt_is_text_or_blocks(system: Any) -> None:
    assert messages_of(QUESTION, system=system) == [{"role": "system", "content": "Be kind.\n\nBe brief."}, USER]


@pytest.mark.parametrize("system", ["", [], None])
def test_an_empty_system_prompt_is_no_message(system: Any) -> None:
    assert messages_of(QUESTION, system=system) == [USER]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_leading_system_messages_are_joined_with_the_system_prompt(role: str) -> None:
    request = read({"role": role, "content": "Two."}, {"role": role, "content": [text("Three.")]}, USER, system="One.")
    assert request.messages[0].message == {"role": "system", "content": "One.\n\nTwo.\n\nThree."}
    assert request.places == ["system", "messages[2]"]


def test_the_same_system_prompts_give_the_same_object() -> None:
    dialect = MessagesDialect()
    first = dialect.read(body_of(QUESTION, system=[text("One."), text("Two.", **CACHED)]))
    second = dialect.read(body_of(QUESTION, system=[text("One.", **CACHED), text("Two.")]))
    assert first.messages[0] is second.messages[0]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_in_the_middle_becomes_a_marked_user_message(role: str) -> None:
    found = messages_of(QUESTION, {"role": role, "content": [text("Agents: none.")]})
    assert found[1] == {"role": "user", "content": "<system-message>\nAgents: none.\n</system-message>"}


def test_the_providers_accounting_is_no_part_of_the_system_prompt() -> None:
    accounting = text("x-anthropic-billing-header: cc_version=2.1; cch=12ab;")
    assert messages_of(QUESTION, system=[accounting, text("Be kind.")])[0]["content"] == "Be kind."


def test_an_assistant_message_has_its_thinking_text_and_calls() -> None:
    found = messages_of(
        QUESTION,
        assistant({"type": "thinking", "thinking": "Add them.", "signature": "c2ln"}, text("I add."), CALL, OTHER_CALL),
        user(result(content="3"), result("call_2")),
    )
    assert found[1] == {
        "role": "assistant",
        "content": "I add.",
        "reasoning_content": "Add them.",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"b":2.0,"a":1}'}},
            {"id": "call_2", "type": "function", "function": {"name": "look_at", "arguments": "{}"}},
        ],
    }


@pytest.mark.parametrize(
    "content",
    [
        "Hello.",
        [text("Hel"), text("lo.")],
        [{"type": "redacted_thinking", "data": "xyz"}, text("Hello.")],
        [{"type": "thinking", "thinking": "", "signature": "c2ln"}, text("Hello.")],
    ],
)
def test_an_assistant_message_without_calls_and_thinking_is_its_text(content: Any) -> None:
    found = messages_of(QUESTION, {"role": "assistant", "content": content}, USER)
    assert found[1] == {"role": "assistant", "content": "Hello."}


def test_tool_results_come_first_and_the_other_blocks_after_them() -> None:
    request = read(
        QUESTION,
        assistant(CALL, OTHER_CALL),
        user(text("Go on."), result("call_2", content="seen"), result("call_1", content=[text("3", **CACHED)])),
    )
    assert [item.message for item in request.messages[2:]] == [
        {"role": "tool", "content": "seen", "tool_call_id": "call_2"},
        {"role": "tool", "content": "3", "tool_call_id": "call_1"},
        {"role": "user", "content": "Go on."},
    ]
    assert request.places[2:] == ["messages[2].content[1]", "messages[2].content[2]", "messages[2]"]


def test_an_image_of_a_tool_result_stays_in_its_message() -> None:
    found = messages_of(QUESTION, assistant(CALL), user(result(content=[text("This:"), IMAGE])))
    assert found[2]["content"] == [text("This:"), IMAGE_PART]


@pytest.mark.parametrize(
    ("keys", "content"),
    [
        ({"content": "No such file.", "is_error": True}, "No such file."),
        ({"content": "", "is_error": True}, "Error"),
        ({"is_error": True}, "Error"),
        ({"content": [], "is_error": False}, ""),
        ({}, ""),
    ],
)
def test_a_failed_result_has_its_text_or_says_that_it_failed(keys: dict[str, Any], content: str) -> None:
    assert messages_of(QUESTION, assistant(CALL), user(result(**keys)))[2]["content"] == content


def test_an_empty_user_message_is_kept() -> None:
    assert messages_of(user()) == [{"role": "user", "content": ""}]


def test_the_same_bytes_give_the_same_messages() -> None:
    dialect = MessagesDialect()
    turn = (QUESTION, assistant(CALL), user(result(content=[IMAGE]), text("Go on.")))
    first, second = dialect.read(body_of(*turn)), dialect.read(body_of(*turn))
    assert all(old is new for old, new in zip(first.messages, second.messages, strict=True))


@pytest.mark.parametrize(
    "marked",
    [
        user({**result(content=[text("This:"), IMAGE]), **CACHED}, text("Go on.")),
        user(result(content=[text("This:"), {**IMAGE, **CACHED}]), text("Go on.")),
        user(result(content=[text("This:", **CACHED), IMAGE]), text("Go on.", **CACHED)),
    ],
)
def test_a_moved_cache_control_gives_the_same_messages(marked: Any) -> None:
    dialect = MessagesDialect()
    plain = user(result(content=[text("This:"), IMAGE]), text("Go on."))
    first = dialect.read(body_of(QUESTION, assistant(CALL), plain))
    second = dialect.read(body_of(QUESTION, assistant({**CALL, **CACHED}), marked))
    assert all(old is new for old, new in zip(first.messages, second.messages, strict=True))


def test_a_changed_image_gives_another_message() -> None:
    dialect = MessagesDialect()
    other = {"type": "image", "source": {**IMAGE["source"], "data": "iVBORw0KGgp="}}  # type: ignore[dict-item]
    first, second = dialect.read(body_of(user(IMAGE))), dialect.read(body_of(user(other)))
    assert first.messages[0].key != second.messages[0].key


@pytest.mark.parametrize("kind", [{}, {"type": "custom"}, {"type": None}, {"strict": True, **CACHED}])
def test_a_tool_becomes_a_function(kind: dict[str, Any]) -> None:
    assert read(QUESTION, tools=[{**TOOL, **kind}]).tools == [FUNCTION]


def test_a_tool_without_description_and_schema_takes_no_arguments() -> None:
    tools = read(QUESTION, tools=[{"name": "stop"}]).tools
    assert tools == [
        {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}}
    ]


def test_tools_of_the_provider_are_left_out_and_counted() -> None:
    request = read(
        QUESTION,
        tools=[{"type": "web_search_20250305", "name": "web_search"}, TOOL],
        mcp_servers=[{"type": "url", "url": "https://example.com", "name": "x"}],
    )
    assert (request.tools, request.ignored_tools) == ([FUNCTION], ("web_search_20250305", "mcp_server"))


@pytest.mark.parametrize("tools", [None, [], [{"type": "bash_20250124", "name": "bash"}]])
def test_without_functions_there_are_no_tools(tools: Any) -> None:
    assert read(QUESTION, tools=tools).tools is None


def test_the_same_tools_give_the_same_object_also_with_a_moved_cache_control() -> None:
    dialect = MessagesDialect()
    first = dialect.read(body_of(QUESTION, tools=[TOOL]))
    second = dialect.read(body_of(QUESTION, tools=[{**TOOL, **CACHED}]))
    assert first.tools is second.tools


def test_sampling_keys_get_our_names() -> None:
    request = read(QUESTION, temperature=0.5, top_p=0.9, top_k=20, stop_sequences=["END"])
    assert request.sampling == {"temperature": 0.5, "top_p": 0.9, "top_k": 20, "max_tokens": 64, "stop": ["END"]}


def test_sampling_keys_that_are_null_or_absent_are_not_set() -> None:
    body = json.dumps({"messages": [QUESTION], "temperature": None, "max_tokens": None, "stop_sequences": []}).encode()
    request = MessagesDialect().read(body)
    assert (request.sampling, request.model, request.choices, request.streamed) == ({}, "", 1, False)


def test_the_model_and_the_stream_are_read() -> None:
    request = read(QUESTION, stream=True)
    assert (request.model, request.streamed) == ("tiny", True)


@pytest.mark.parametrize("choice", [None, {"type": "auto"}, {"type": "auto", "disable_parallel_tool_use": True}])
def test_a_free_choice_of_tools_is_no_constraint(choice: Any) -> None:
    request = read(QUESTION, tool_choice=choice, tools=[TOOL])
    assert (request.may_call_tools, request.constraints) == (True, {})


def test_the_policy_may_not_call_tools_with_the_choice_none() -> None:
    request = read(QUESTION, tool_choice={"type": "none"}, tools=[TOOL])
    assert (request.may_call_tools, request.tools, request.constraints) == (False, [FUNCTION], {})


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}])
def test_a_forced_tool_is_a_constraint_that_no_engine_can_do(choice: Any) -> None:
    assert read(QUESTION, tool_choice=choice).constraints == {"tool_choice": Constraint("tool_choice", None)}


@pytest.mark.parametrize("place", ["output_config.format", "output_format"])
def test_a_schema_for_the_answer_is_a_constraint(place: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    keys = {"output_config": {"format": form}} if "." in place else {place: form}
    assert read(QUESTION, **keys).constraints == {"structured_outputs": Constraint(place, {"json": {"type": "object"}})}


def test_keys_for_the_provider_are_accepted() -> None:
    request = read(
        QUESTION,
        thinking={"type": "adaptive"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "high"},
        metadata={"user_id": "x"},
        service_tier="auto",
        cache_control={"type": "ephemeral"},
    )
    assert (request.constraints, request.sampling) == ({}, {"max_tokens": 64})


def test_a_request_for_a_token_count_is_read_like_a_request_for_an_answer() -> None:
    dialect = MessagesDialect()
    keys = {"model": "tiny", "system": "Be kind.", "messages": [QUESTION], "tools": [TOOL]}
    counted = dialect.read_count(json.dumps(keys).encode())
    answered = dialect.read(body_of(QUESTION, system="Be kind.", tools=[TOOL]))
    assert (list(counted.messages), counted.tools) == (list(answered.messages), answered.tools)


def test_a_token_count_may_end_with_the_assistant() -> None:
    request = MessagesDialect().read_count(body_of(QUESTION, assistant(text("It"))))
    assert request.messages[-1].role == "assistant"
