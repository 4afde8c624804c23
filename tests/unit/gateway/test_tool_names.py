"""The result of a tool gets the name of its call, from the conversation and in the same way in every dialect."""

import json
from typing import Any

import pytest

from rollout.gateway.dialects.base import Answer, AnswerChoice, AnsweredCall, IncomingMessage
from rollout.gateway.echoes import ConversationTree, EchoMode
from rollout.records.messages import FinishReason, Message, MessageError
from tests.unit.gateway.client_messages import TOOLS, Client, assistant, result, user
from tests.unit.gateway.dialect_clients import SYSTEM
from tests.unit.gateway.dialect_conversations import PATHS, new_client

QUESTION = user("What is in it?")
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
CALLS = (AnsweredCall("call_0_0", "view", '{"a": 1.5}'), AnsweredCall("call_0_1", "run", "{}"))


def names(messages: list[Message]) -> list[str | None]:
    """Return the name in each result of a tool."""
    return [message.get("name") for message in messages if message["role"] == "tool"]


def session_messages(dialect: str) -> list[Message]:
    """Return what the session gets of a conversation with two parallel calls."""
    client = new_client(dialect)
    tree = ConversationTree(EchoMode.TOLERANT)
    client.add_user("Look.")
    request = client.dialect.read(client.body())
    choice = AnswerChoice("I look.", "Hm.", CALLS, FinishReason.STOP, completion_tokens=1)
    answer = Answer("a1", 0, (choice,), prompt_tokens=1)
    (sent,) = client.dialect.sent_messages(request, answer)
    tree.add_answer(tree.resolve(request.messages, TOOLS), sent, sent.message, 0)
    ids = client.add_answer(json.loads(client.dialect.write_answer(request, answer)))
    client.add_results(ids[::-1], ["done", [{"type": "text", "text": "This:"}, IMAGE]])
    return tree.resolve(client.dialect.read(client.body()).messages, TOOLS).messages


@pytest.mark.parametrize("dialect", PATHS)
def test_the_session_gets_the_same_messages_from_every_dialect(dialect: str) -> None:
    arguments = [json.loads(call.arguments) for call in CALLS]
    messages: list[Any] = session_messages(dialect)
    for call in messages[2]["tool_calls"]:
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": value}}
        for call, value in zip(CALLS, arguments, strict=True)
    ]
    assert messages == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "content": "done", "tool_call_id": "call_0_1", "name": "run"},
        {
            "role": "tool",
            "content": [{"type": "text", "text": "This:"}, IMAGE],
            "tool_call_id": "call_0_0",
            "name": "view",
        },
    ]


def test_a_result_has_the_name_of_its_call() -> None:
    calls = assistant("", ("a", "add", "{}"), ("b", "look_at", "{}"))
    assert names(Client().send(QUESTION, calls, result("b"), result("a")).messages) == ["look_at", "add"]


def test_the_last_call_with_an_id_gives_the_name() -> None:
    first, second = assistant("", ("a", "add", "{}")), assistant("", ("a", "look_at", "{}"))
    assert names(Client().send(QUESTION, first, result("a"), second, result("a")).messages) == ["add", "look_at"]


@pytest.mark.parametrize("before", [(), (assistant("", ("a", "add", "{}")),)], ids=["no call", "another call"])
def test_a_result_of_an_unknown_call_is_refused_with_its_place(before: tuple[IncomingMessage, ...]) -> None:
    with pytest.raises(MessageError, match=rf"messages\[{1 + len(before)}\] is the result of the tool call 'b'"):
        Client().send(QUESTION, *before, result("b"))


def test_a_result_before_its_call_is_refused() -> None:
    with pytest.raises(MessageError, match=r"messages\[1\] is the result of the tool call 'a'"):
        Client().send(QUESTION, result("a"), assistant("", ("a", "add", "{}")))


def test_the_name_of_the_call_wins_over_the_name_in_the_result() -> None:
    named = result("a")
    named.message["name"] = "sum"
    assert names(Client().send(QUESTION, assistant("", ("a", "add", "{}")), named).messages) == ["add"]


def test_a_result_under_a_changed_id_has_the_name_of_the_call_that_was_sampled() -> None:
    client = Client()
    client.ask(QUESTION, answer=assistant("", ("call_0", "add", "{}")))
    resolved = client.send(QUESTION, assistant("", ("toolu_1", "add", "{}")), result("toolu_1"))
    assert resolved.messages[2] == {"role": "tool", "tool_call_id": "call_0", "content": "done", "name": "add"}


def test_the_message_of_a_client_stays_as_it_is() -> None:
    sent = result("a")
    Client().send(QUESTION, assistant("", ("a", "add", "{}")), sent)
    assert "name" not in sent.message
