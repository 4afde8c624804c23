"""How single items are read: references, reasoning that comes back changed, and items that we never send."""

from typing import Any

import pytest

from rollout.gateway.dialects.responses import ResponsesDialect
from tests.unit.gateway.dialects.responses_requests import CALLS, PIXEL, QUESTION, answer, body, messages, output


@pytest.fixture
def dialect() -> ResponsesDialect:
    return ResponsesDialect()


def last(dialect: ResponsesDialect, *items: dict[str, Any]) -> dict[str, Any]:
    return messages(dialect.read(body([QUESTION, *items])))[-1]


@pytest.mark.parametrize("kind", [{"type": "item_reference"}, {"type": None}, {}])
def test_an_item_can_be_named_by_its_id(dialect: ResponsesDialect, kind: dict[str, Any]) -> None:
    given = answer("I add.", CALLS, reasoning="Two calls.")
    items = output(dialect, given)
    references = [{**kind, "id": item["id"]} for item in items]
    assert last(dialect, *references) is last(dialect, *items)


def test_reasoning_in_both_forms_counts_once(dialect: ResponsesDialect) -> None:
    item = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "Add."}],
        "content": [{"type": "reasoning_text", "text": "Add."}],
    }
    assert last(dialect, item)["reasoning_content"] == "Add."


def test_the_content_of_reasoning_counts_before_its_summary(dialect: ResponsesDialect) -> None:
    item = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "Short."}],
        "content": [{"type": "reasoning_text", "text": "Long."}],
    }
    assert last(dialect, item)["reasoning_content"] == "Long."


def test_encrypted_reasoning_stands_for_its_text(dialect: ResponsesDialect) -> None:
    items = output(dialect, answer("3.5", reasoning="Add."), include=["reasoning.encrypted_content"])
    bare = {"type": "reasoning", "summary": [], "encrypted_content": items[0]["encrypted_content"]}
    assert last(dialect, bare, items[1])["reasoning_content"] == "Add."


def test_reasoning_of_another_provider_has_no_text(dialect: ResponsesDialect) -> None:
    item = {"type": "reasoning", "id": "rs_9", "summary": [], "encrypted_content": "gAAAAAB"}
    assert last(dialect, item, {"role": "assistant", "content": "3.5"}) == {"role": "assistant", "content": "3.5"}


def test_reasoning_after_calls_starts_another_message(dialect: ResponsesDialect) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Again."}]}
    read = messages(dialect.read(body([QUESTION, thought, call, thought, call])))
    assert [len(message.get("tool_calls", ())) for message in read] == [0, 1, 1]


def test_text_behind_calls_belongs_to_them(dialect: ResponsesDialect) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    message = last(dialect, call, {"role": "assistant", "content": "I add."})
    assert (message["content"], len(message["tool_calls"])) == ("I add.", 1)


def test_two_texts_of_the_assistant_are_two_messages(dialect: ResponsesDialect) -> None:
    texts = [{"role": "assistant", "content": text} for text in ("One.", "Two.")]
    assert [message["content"] for message in messages(dialect.read(body([QUESTION, *texts])))[1:]] == ["One.", "Two."]


def test_a_refusal_is_text_of_the_assistant(dialect: ResponsesDialect) -> None:
    item = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert last(dialect, item)["content"] == "No."


def test_a_custom_call_has_its_input_as_an_argument(dialect: ResponsesDialect) -> None:
    item = {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": '*** Begin\n"é"'}
    assert last(dialect, item)["tool_calls"][0]["function"] == {
        "name": "apply_patch",
        "arguments": '{"input":"*** Begin\\n\\"é\\""}',
    }


def test_a_custom_call_has_a_result(dialect: ResponsesDialect) -> None:
    call = {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "x"}
    result = {"type": "custom_tool_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "Done."}]}
    assert last(dialect, call, result) == {
        "role": "tool",
        "content": "Done.",
        "tool_call_id": "c",
    }


def test_a_call_has_the_name_of_its_namespace(dialect: ResponsesDialect) -> None:
    item = {"type": "function_call", "call_id": "c", "name": "wait", "namespace": "agents", "arguments": "{}"}
    assert last(dialect, item)["tool_calls"][0]["function"]["name"] == "agents__wait"


def test_a_shell_of_the_client_becomes_a_call_and_a_result(dialect: ResponsesDialect) -> None:
    call = {"type": "local_shell_call", "id": "i", "call_id": "c", "action": {"type": "exec", "command": ["ls"]}}
    read = messages(dialect.read(body([QUESTION, call, {"type": "local_shell_call_output", "id": "c", "output": "a"}])))
    assert read[1]["tool_calls"][0]["function"] == {
        "name": "local_shell",
        "arguments": '{"type":"exec","command":["ls"]}',
    }
    assert read[2] == {"role": "tool", "content": "a", "tool_call_id": "c"}


def test_the_output_of_a_shell_is_shown_as_json(dialect: ResponsesDialect) -> None:
    result = {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "a", "stderr": ""}]}
    assert last(dialect, result)["content"] == '[{"stdout":"a","stderr":""}]'


def test_a_screenshot_is_an_image(dialect: ResponsesDialect) -> None:
    result = {
        "type": "computer_call_output",
        "call_id": "c",
        "output": {"type": "computer_screenshot", "image_url": PIXEL},
    }
    assert last(dialect, result)["content"] == [{"type": "image_url", "image_url": {"url": PIXEL}}]


@pytest.mark.parametrize("kind", ["web_search_call", "file_search_call", "mcp_list_tools", "tool_search_output"])
def test_items_of_a_provider_are_skipped(dialect: ResponsesDialect, kind: str) -> None:
    items = output(dialect, answer("I add.", CALLS))
    skipped = {"type": kind, "id": "ws_1", "status": "completed"}
    assert last(dialect, items[0], skipped, *items[1:]) is last(dialect, *items)


def test_a_result_without_its_call_splits_no_answer(dialect: ResponsesDialect) -> None:
    result = {"type": "function_call_output", "call_id": "gone", "output": "3.5"}
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    read = messages(dialect.read(body([QUESTION, result, {"role": "assistant", "content": "I add."}, call])))
    assert [message["role"] for message in read] == ["user", "tool", "assistant"]


def test_a_message_between_agents_is_a_user_message(dialect: ResponsesDialect) -> None:
    content = [{"type": "input_text", "text": "Look at a.py."}]
    item = {"type": "agent_message", "author": "/root", "recipient": "/root/reader", "content": content}
    message = last(dialect, item)
    text = "".join(part["text"] for part in message["content"])
    assert message["role"] == "user"
    assert [word in text for word in ("/root", "/root/reader", "Look at a.py.")] == [True] * 3


def test_a_new_effort_of_reasoning_is_skipped(dialect: ResponsesDialect) -> None:
    update = {"type": "configuration_update", "reasoning": {"effort": "low"}}
    assert messages(dialect.read(body([QUESTION, update]))) == [QUESTION]
