"""What clients send back of an answer has the key of that answer, and nothing else has it."""

from typing import Any

import pytest

from rollout.gateway.dialects.base import AnsweredCall, IncomingMessage
from rollout.gateway.dialects.responses import ResponsesDialect
from tests.unit.gateway.dialects.responses_requests import ADD, CALLS, QUESTION, answer, body, response

PATCH = {"type": "custom", "name": "apply_patch", "description": "Edit files."}
AGENTS = {
    "type": "namespace",
    "name": "agents",
    "description": "Sub-agents.",
    "tools": [{"type": "function", "name": "wait", "parameters": {"type": "object", "properties": {}}}],
}
TOOLS = [ADD, PATCH, AGENTS]
ANSWERS = {
    "text": answer("3.5"),
    "empty": answer(""),
    "reasoning alone": answer("", reasoning="Hm."),
    "calls": answer(calls=CALLS),
    "all": answer("I add.", CALLS, reasoning="Two calls.\nSo both."),
    "custom": answer(calls=(AnsweredCall("call_a", "apply_patch", '{ "input" : "caf\\u00e9" }'),)),
    "custom without input": answer(calls=(AnsweredCall("call_a", "apply_patch", '{"patch": 1}'),)),
    "namespace": answer(calls=(AnsweredCall("call_a", "agents__wait", '{"id": 1}'),)),
    "unknown tool": answer(calls=(AnsweredCall("call_a", "rm", "{"),)),
}


def play(given: Any, **fields: Any) -> tuple[ResponsesDialect, IncomingMessage, list[dict[str, Any]]]:
    """Return a dialect that sent an answer, the answer's message, and its items."""
    dialect = ResponsesDialect()
    request = dialect.read(body([QUESTION], tools=TOOLS, **fields))
    items = response(dialect, request, given)["output"]
    (sent,) = dialect.sent_messages(request, given)
    return dialect, sent, items


def echo(dialect: ResponsesDialect, items: list[dict[str, Any]]) -> IncomingMessage:
    """Return the only message that the client sends behind the question."""
    _, message = dialect.read(body([QUESTION, *items], tools=TOOLS)).messages
    return message


def as_the_sdk(item: dict[str, Any]) -> dict[str, Any]:
    return dict(item)


def as_codex(item: dict[str, Any]) -> dict[str, Any]:
    """Codex writes reasoning without status, with an explicit `content: null`, and puts the type first."""
    if item["type"] != "reasoning":
        return dict(sorted(item.items(), reverse=True))
    return {
        "type": "reasoning",
        "id": item["id"],
        "summary": item["summary"],
        "content": None,
        "encrypted_content": None,
    }


def without_ids(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("id", "status")}


def as_references(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "item_reference", "id": item["id"]}


@pytest.mark.parametrize("client", [as_the_sdk, as_codex, without_ids, as_references])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_echo_equals_the_answer_exactly(name: str, client: Any) -> None:
    dialect, sent, items = play(ANSWERS[name])
    back = echo(dialect, [client(item) for item in items])
    assert (back.exact_key, back.key) == (sent.exact_key, sent.key)


@pytest.mark.parametrize("client", [as_the_sdk, as_codex, as_references])
def test_an_echo_with_ids_is_the_same_object(client: Any) -> None:
    dialect, sent, items = play(ANSWERS["all"])
    assert echo(dialect, [client(item) for item in items]) is sent


def test_an_echo_without_reasoning_has_the_same_normal_form() -> None:
    dialect, sent, items = play(ANSWERS["all"])
    back = echo(dialect, items[1:])
    assert back.key == sent.key
    assert back.exact_key != sent.exact_key


def test_a_call_that_lost_its_namespace_is_recognised() -> None:
    dialect, sent, items = play(ANSWERS["namespace"])
    assert echo(dialect, [{key: value for key, value in items[0].items() if key != "namespace"}]) is sent


@pytest.mark.parametrize(
    ("name", "index", "key", "value"),
    [
        ("text", 0, "content", [{"type": "output_text", "text": "3.6"}]),
        ("calls", 0, "arguments", '{"b": 2.0, "a": 1.51}'),
        ("calls", 0, "name", "sub"),
        ("custom", 0, "input", "cafe"),
    ],
)
def test_a_changed_item_does_not_equal_the_answer(name: str, index: int, key: str, value: Any) -> None:
    dialect, sent, items = play(ANSWERS[name])
    items[index] = {**items[index], key: value}
    assert echo(dialect, items).key != sent.key


def test_a_call_with_an_id_that_was_used_twice_is_read_by_its_own_words() -> None:
    dialect, _, _ = play(answer(calls=(AnsweredCall("call-0", "agents__wait", "{}"),), id="a1"))
    request = dialect.read(body([QUESTION], tools=TOOLS))
    response(dialect, request, answer(calls=(AnsweredCall("call-0", "add", "{}"),), id="a2"))
    item = {"type": "function_call", "call_id": "call-0", "name": "wait", "arguments": "{}"}
    assert echo(dialect, [item]).message["tool_calls"][0]["function"]["name"] == "wait"
