"""Random conversations in every dialect: the session gets the same messages, whatever the client does with answers."""

import json
from collections.abc import Mapping
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.gateway.dialects.base import Answer, AnswerChoice, AnsweredCall
from rollout.gateway.echoes import ConversationTree, EchoMode, Resolved
from rollout.records.conversations import Echo
from rollout.records.messages import FinishReason, Message
from tests.unit.gateway.client_messages import TOOLS
from tests.unit.gateway.dialect_clients import CLIENTS, SYSTEM, DialectClient
from tests.unit.gateway.random_conversations import (
    ClientHabits,
    PlannedAnswer,
    conversations,
    edit_arguments,
    edit_text,
    habits,
)


def make_answer(answer: PlannedAnswer, turn: int) -> Answer:
    """Return an answer as the endpoint gives it to a dialect."""
    calls = tuple(
        AnsweredCall(call_id, name, json.dumps(value, ensure_ascii=False, separators=(" , ", ":  ")))
        for call_id, (name, value) in zip(answer.call_ids(turn), answer.calls, strict=True)
    )
    choice = AnswerChoice(answer.text, answer.reasoning, calls, FinishReason.STOP, completion_tokens=1)
    return Answer(f"answer{turn}", 0, (choice,), prompt_tokens=1)


def answer_message(answer: PlannedAnswer, turn: int) -> Message:
    """Return the message of an answer, as the session keeps it."""
    message: Message = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": value}}
            for call_id, (name, value) in zip(answer.call_ids(turn), answer.calls, strict=True)
        ]
    return message


def session_messages(answers: list[PlannedAnswer]) -> list[Message]:
    """Return the conversation as the session should get it."""
    messages: list[Message] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Begin."}]
    for turn, answer in enumerate(answers):
        messages.append(answer_message(answer, turn))
        for call_id, (name, _), content in zip(answer.call_ids(turn), answer.calls, answer.results, strict=True):
            messages.append({"role": "tool", "content": content, "tool_call_id": call_id, "name": name})
        if answer.user is not None:
            messages.append({"role": "user", "content": answer.user})
    return messages


def play(
    client: DialectClient, answers: list[PlannedAnswer], edits: Mapping[int, PlannedAnswer] = MappingProxyType({})
) -> Resolved:
    """Play a conversation in a dialect; return how its last request is seen.

    Args:
        client: the program.
        answers: the answers that it gets.
        edits: the answers that it makes of some of them, by turn, before it repeats them.
    """
    tree = ConversationTree(EchoMode.TOLERANT)
    client.add_user("Begin.")
    for turn, planned in enumerate(answers):
        request = client.dialect.read(client.body())
        answer = make_answer(planned, turn)
        (sent,) = client.dialect.sent_messages(request, answer)
        tree.add_answer(tree.resolve(request.messages, TOOLS), sent, answer_message(planned, turn), turn)
        written = client.dialect.write_answer(request, answer)
        if turn in edits:
            # The ids of the answer and of its items stay, because another object of the dialect writes them.
            other = type(client)(client.habits)
            written = other.dialect.write_answer(other.dialect.read(client.body()), make_answer(edits[turn], turn))
        ids = client.add_answer(json.loads(written))
        if ids:
            client.add_results(ids, planned.results)
        if planned.user is not None:
            client.add_user(planned.user)
    return tree.resolve(client.dialect.read(client.body()).messages, TOOLS)


@pytest.mark.parametrize("client", CLIENTS)
@given(answers=conversations)
def test_a_client_that_changes_nothing_sends_exact_echoes(
    client: type[DialectClient], answers: list[PlannedAnswer]
) -> None:
    resolved = play(client(None), answers)
    assert (resolved.echo, resolved.echoed_turns) == (Echo.EXACT, tuple(range(len(answers))))


@pytest.mark.parametrize("client", CLIENTS)
@given(answers=conversations, client_habits=habits)
def test_the_session_gets_the_same_messages_in_every_dialect(
    client: type[DialectClient], answers: list[PlannedAnswer], client_habits: ClientHabits
) -> None:
    resolved = play(client(client_habits), answers)
    assert resolved.echoed_turns == tuple(range(len(answers)))
    assert resolved.messages == session_messages(answers)


@pytest.mark.parametrize("client", CLIENTS)
@given(answers=conversations, client_habits=habits, data=st.data())
def test_a_changed_letter_of_the_text_is_foreign_in_every_dialect(
    client: type[DialectClient], answers: list[PlannedAnswer], client_habits: ClientHabits, data: st.DataObject
) -> None:
    turn, edited = edit_text(answers, client_habits, data.draw)
    resolved = play(client(client_habits), answers[: turn + 1], {turn: edited})
    assert (resolved.echo, resolved.echoed_turns[:turn]) == (Echo.FOREIGN, tuple(range(turn)))
    assert turn not in resolved.echoed_turns


@pytest.mark.parametrize("client", CLIENTS)
@given(answers=conversations, client_habits=habits, data=st.data())
def test_a_changed_value_of_an_argument_is_foreign_in_every_dialect(
    client: type[DialectClient], answers: list[PlannedAnswer], client_habits: ClientHabits, data: st.DataObject
) -> None:
    turn, edited = edit_arguments(answers, data.draw)
    resolved = play(client(client_habits), answers[: turn + 1], {turn: edited})
    assert (resolved.echo, resolved.echoed_turns[:turn]) == (Echo.FOREIGN, tuple(range(turn)))
    assert turn not in resolved.echoed_turns
