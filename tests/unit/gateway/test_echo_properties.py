"""Random conversations: every form in which a client repeats an answer is recognised, and no edit is."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rollout.gateway.dialects.base import IncomingMessage
from rollout.gateway.dialects.normal_form import incoming_message
from rollout.gateway.echoes import ForeignReason, Resolved
from rollout.records.conversations import Echo
from tests.unit.gateway.client_messages import Client, is_same
from tests.unit.gateway.random_conversations import (
    ClientHabits,
    PlannedAnswer,
    conversations,
    edit_arguments,
    edit_text,
    habits,
    next_messages,
    sent_answer,
)

START = incoming_message({"role": "user", "content": "Begin."})


def echoed_conversation(answers: Sequence[PlannedAnswer], client_habits: ClientHabits) -> list[IncomingMessage]:
    """Return the conversation with these answers, as a client with these habits sends it."""
    messages = [START]
    for turn, answer in enumerate(answers):
        messages += client_habits.echo(answer, turn)
        messages += next_messages(answer, client_habits.call_ids(answer.call_ids(turn)))
    return messages


def play(client: Client, answers: Sequence[PlannedAnswer], client_habits: ClientHabits) -> list[Any]:
    """Play a conversation with a client, and return the messages that the session should know."""
    expected = client.send(START).messages
    for turn, answer in enumerate(answers):
        resolved = client.send(*echoed_conversation(answers[:turn], client_habits))
        assert is_same(resolved.messages, expected)
        expected = [
            *expected,
            client.ask(*echoed_conversation(answers[:turn], client_habits), answer=sent_answer(answer, turn)),
        ]
        expected += client.send(*echoed_conversation(answers[: turn + 1], client_habits)).messages[len(expected) :]
    return expected


@given(conversations, habits)
def test_answers_are_recognised_in_every_form(answers: list[PlannedAnswer], client_habits: ClientHabits) -> None:
    client = Client()
    expected = play(client, answers, client_habits)
    resolved = client.send(*echoed_conversation(answers, client_habits))
    assert resolved.echoed_turns == tuple(range(len(answers)))
    assert resolved.echo in (Echo.EXACT, Echo.NORMALISED)
    assert is_same(resolved.messages, expected)


@given(conversations, habits)
def test_results_belong_to_the_calls_of_the_policy(answers: list[PlannedAnswer], client_habits: ClientHabits) -> None:
    client = Client()
    messages = play(client, answers, client_habits)
    ids = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert ids == [call_id for turn, answer in enumerate(answers) for call_id in answer.call_ids(turn)]


@given(conversations, habits, habits)
def test_a_client_that_changes_its_habits_stays_in_the_conversation(
    answers: list[PlannedAnswer], first: ClientHabits, then: ClientHabits
) -> None:
    client = Client()
    expected = play(client, answers, first)
    assert is_same(client.send(*echoed_conversation(answers, then)).messages, expected)


def after_edit(answers: list[PlannedAnswer], turn: int, edited: PlannedAnswer, client_habits: ClientHabits) -> Resolved:
    """Play a conversation, and send it with one answer edited."""
    client = Client()
    play(client, answers, client_habits)
    return client.send(*echoed_conversation([*answers[:turn], edited, *answers[turn + 1 :]], client_habits))


@given(conversations, habits, st.data())
def test_a_changed_letter_of_the_text_is_never_recognised(
    answers: list[PlannedAnswer], client_habits: ClientHabits, data: st.DataObject
) -> None:
    turn, edited = edit_text(answers, client_habits, data.draw)
    resolved = after_edit(answers, turn, edited, client_habits)
    assert resolved.echoed_turns == tuple(range(turn))
    assert resolved.echo is Echo.FOREIGN


@given(conversations, habits, st.data())
def test_a_changed_value_of_an_argument_is_never_recognised(
    answers: list[PlannedAnswer], client_habits: ClientHabits, data: st.DataObject
) -> None:
    turn, edited = edit_arguments(answers, data.draw)
    resolved = after_edit(answers, turn, edited, client_habits)
    assert resolved.echoed_turns == tuple(range(turn))
    # By chance, the edit can make another answer of the conversation.
    assert resolved.foreign_reason in (ForeignReason.ARGUMENTS, ForeignReason.HISTORY)
