"""Echoes: what a client sends back of an answer is recognised, also in another form, and what it made up is not."""

from typing import Any

import pytest

from rollout.gateway.dialects.base import IncomingMessage
from rollout.gateway.echoes import EchoMode
from rollout.records.conversations import Echo
from tests.unit.gateway.client_messages import Client, assistant, is_same, result, user

ASKED = user("What is in é.png?")
ANSWER = assistant(
    "I look.", ("call-0-0", "view", '{"path": "é.png", "zoom": 1.0}'), ("call-0-1", "list", "{}"), reasoning="Hm."
)
RESULTS = (result("call-0-0", "a cat"), result("call-0-1", "é.png"))


def test_a_conversation_without_answers_has_no_echo() -> None:
    assert Client().send(ASKED).echo is None


def test_an_exact_echo_becomes_the_answer_of_its_turn() -> None:
    client = Client()
    answer = client.ask(ASKED, answer=ANSWER)
    resolved = client.send(ASKED, ANSWER, *RESULTS)
    assert (resolved.echo, resolved.foreign_reason, resolved.echoed_turns) == (Echo.EXACT, None, (0,))
    assert resolved.messages[1] is answer


def test_new_objects_with_the_same_content_become_the_same_messages() -> None:
    client = Client()
    client.ask(ASKED, answer=ANSWER)
    first = client.send(ASKED, ANSWER, *RESULTS)
    again = client.send(user("What is in é.png?"), ANSWER, result("call-0-0", "a cat"), result("call-0-1", "é.png"))
    assert is_same(first.messages, again.messages)


def test_a_request_during_another_gets_the_same_messages() -> None:
    client = Client()
    first = client.send(user("same"))
    assert is_same(client.send(user("same")).messages, first.messages)


@pytest.mark.parametrize(
    ("change", "echo"),
    [
        ("reasoning dropped", assistant("I look.", *[("call-0-0", "view", '{"path": "é.png", "zoom": 1.0}')])),
        ("white space", assistant("I look.", ("call-0-0", "view", '{"path":"é.png","zoom":1.0}'), reasoning="Hm.")),
        ("key order", assistant("I look.", ("call-0-0", "view", '{"zoom": 1.0, "path": "é.png"}'), reasoning="Hm.")),
        ("escapes", assistant("I look.", ("call-0-0", "view", '{"path": "\\u00e9.png", "zoom": 1.0}'))),
        ("1 for 1.0", assistant("I look.", ("call-0-0", "view", '{"path": "é.png", "zoom": 1}'))),
        ("ids", assistant("I look.", ("toolu_7", "view", '{"path": "é.png", "zoom": 1.0}'), reasoning="Hm.")),
        ("line break", assistant("\nI look.", ("call-0-0", "view", '{"path": "é.png", "zoom": 1.0}'))),
        ("text dropped", assistant("", ("call-0-0", "view", '{"path": "é.png", "zoom": 1.0}'), reasoning="Hm.")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_echo_in_another_form_is_normalised(change: str, echo: IncomingMessage) -> None:
    client = Client()
    sent = assistant("I look.", ("call-0-0", "view", '{"path": "é.png", "zoom": 1.0}'), reasoning="Hm.")
    answer = client.ask(ASKED, answer=sent)
    resolved = client.send(ASKED, echo, user("Go on."))
    assert (resolved.echo, resolved.echoed_turns) == (Echo.NORMALISED, (0,))
    assert resolved.messages[1] is answer


def test_an_answer_without_calls_is_not_the_echo_of_one_with_the_text_and_calls() -> None:
    client = Client()
    client.ask(ASKED, answer=ANSWER)
    resolved = client.send(ASKED, assistant("I look."), user("Go on."))
    assert (resolved.echo, resolved.foreign_reason) == (Echo.FOREIGN, "tool calls changed")


@pytest.mark.parametrize(
    "parts",
    [
        (assistant("", reasoning="Hm."), assistant("I look.", *[("call-0-0", "list", "{}")])),
        (assistant("I look.", reasoning="Hm."), assistant("", ("call-0-0", "list", "{}"))),
        (assistant("", reasoning="Hm."), assistant("I look."), assistant("", ("call-0-0", "list", "{}"))),
        (assistant("I look."), assistant("", ("toolu_7", "list", "{ }"))),
    ],
    ids=["reasoning alone", "text, calls", "three parts", "text, calls with other ids"],
)
def test_an_answer_in_several_messages_is_one_answer(parts: tuple[IncomingMessage, ...]) -> None:
    client = Client()
    answer = client.ask(ASKED, answer=assistant("I look.", ("call-0-0", "list", "{}"), reasoning="Hm."))
    resolved = client.send(ASKED, *parts, result(parts[-1].message["tool_calls"][0]["id"]))
    assert resolved.echo is Echo.NORMALISED
    assert resolved.messages[1] is answer
    assert resolved.messages[2]["tool_call_id"] == "call-0-0"


def test_an_answer_followed_by_a_made_up_message_is_still_recognised() -> None:
    client = Client()
    answer = client.ask(ASKED, answer=assistant("Yes."))
    resolved = client.send(ASKED, assistant("Yes."), assistant("And no."), user("Go on."))
    assert resolved.messages[1] is answer
    assert (resolved.echo, resolved.foreign_reason) == (Echo.FOREIGN, "message inserted")


def foreign_after(answer: IncomingMessage, echo: IncomingMessage) -> tuple[Any, Any, Any]:
    """Return how an echo is seen after an answer."""
    client = Client()
    client.ask(ASKED, answer=answer)
    resolved = client.send(ASKED, echo, user("Go on."))
    return resolved.echo, str(resolved.foreign_reason), resolved.echoed_turns


@pytest.mark.parametrize(
    ("answer", "echo", "reason"),
    [
        (assistant("Yes."), assistant("Yes!"), "text edited"),
        (assistant("Yes.", ("c", "f", "{}")), assistant("Yes!", ("c", "f", "{}")), "text edited"),
        (assistant("", ("c", "f", '{"a": 1}')), assistant("", ("c", "f", '{"a": 2}')), "tool arguments edited"),
        (assistant("", ("c", "f", '{"a": 1}')), assistant("", ("c", "f", '{"a": "1"}')), "tool arguments edited"),
        (assistant("", ("c", "f", '{"a": 1}')), assistant("", ("c", "f", '{"b": 1}')), "tool arguments edited"),
        (assistant("T.", ("c", "f", '{"a": 1}')), assistant("", ("c", "f", '{"a": 2}')), "tool arguments edited"),
        (assistant("", ("c", "f", "{}")), assistant("", ("c", "g", "{}")), "tool calls changed"),
        (assistant("", ("c", "f", "{}"), ("d", "g", "{}")), assistant("", ("c", "f", "{}")), "tool calls changed"),
        (
            assistant("", ("c", "f", "{}"), ("d", "g", "{}")),
            assistant("", ("d", "g", "{}"), ("c", "f", "{}")),
            "tool calls changed",
        ),
        (assistant("", ("c", "f", "{}")), assistant("I made this up."), "message inserted"),
    ],
)
def test_an_edited_answer_is_foreign(answer: IncomingMessage, echo: IncomingMessage, reason: str) -> None:
    assert foreign_after(answer, echo) == (Echo.FOREIGN, reason, ())


def test_the_nearest_of_several_answers_gives_the_reason() -> None:
    client = Client()
    client.ask(ASKED, answer=assistant("", ("c", "f", '{"a": 1}')))
    client.ask(ASKED, answer=assistant("Something else."))
    resolved = client.send(ASKED, assistant("", ("c", "f", '{"a": 2}')), user("Go on."))
    assert resolved.foreign_reason == "tool arguments edited"


def test_a_message_before_the_answer_is_inserted() -> None:
    client = Client()
    client.ask(ASKED, answer=assistant("Yes."))
    resolved = client.send(ASKED, assistant("Well."), user("Really?"), assistant("Yes."), user("Go on."))
    assert (resolved.foreign_reason, resolved.echoed_turns) == ("message inserted", ())


def test_an_assistant_message_before_any_answer_is_inserted() -> None:
    resolved = Client().send(ASKED, assistant("Example."), user("Go on."))
    assert (resolved.echo, resolved.foreign_reason) == (Echo.FOREIGN, "message inserted")


def test_an_answer_after_a_changed_message_has_another_history() -> None:
    client = Client()
    client.ask(ASKED, answer=assistant("Yes."))
    resolved = client.send(user("Something else?"), assistant("Yes."), user("Go on."))
    assert (resolved.echo, resolved.foreign_reason) == (Echo.FOREIGN, "history changed")


def test_an_answer_in_several_messages_after_a_changed_message_has_another_history() -> None:
    client = Client()
    client.ask(ASKED, answer=assistant("Yes.", ("c", "f", "{}"), reasoning="Hm."))
    parts = (assistant("Yes.", reasoning="Hm."), assistant("", ("c", "f", "{}")))
    assert client.send(user("Something else?"), *parts, result("c")).foreign_reason == "history changed"


def test_an_answer_under_other_tools_is_foreign() -> None:
    client = Client()
    client.ask(ASKED, answer=assistant("Yes."), tools=b"one")
    resolved = client.send(ASKED, assistant("Yes."), user("Go on."), tools=b"two")
    assert (resolved.echo, resolved.foreign_reason) == (Echo.FOREIGN, "tools changed")


def test_an_answer_below_a_foreign_message_is_recognised() -> None:
    client = Client()
    start = (ASKED, assistant("Example."), user("Go on."))
    answer = client.ask(*start, answer=assistant("Yes."))
    resolved = client.send(*start, assistant("Yes."), user("More."))
    assert resolved.messages[3] is answer
    assert (resolved.echo, resolved.foreign_reason, resolved.echoed_turns) == (Echo.EXACT, None, (0,))


def test_foreign_messages_with_other_reasoning_are_other_messages() -> None:
    client = Client()
    client.send(ASKED, assistant("Example.", reasoning="One."), user("Go on."))
    resolved = client.send(ASKED, assistant("Example.", reasoning="Two."), user("Go on."))
    assert resolved.messages[1]["reasoning_content"] == "Two."


def test_a_foreign_message_that_gets_other_ids_is_the_same_message() -> None:
    client = Client()
    first = client.send(ASKED, assistant("", ("c", "f", "{}")), result("c"))
    assert is_same(client.send(ASKED, assistant("", ("x", "f", "{}")), result("x")).messages, first.messages)


def test_results_get_the_ids_of_the_answer() -> None:
    client = Client()
    client.ask(ASKED, answer=ANSWER)
    expected = client.send(ASKED, ANSWER, *RESULTS)
    calls = [
        (f"client-{at}", name, text)
        for at, (name, text) in enumerate([("view", '{"path":"é.png","zoom":1}'), ("list", "")])
    ]
    resolved = client.send(
        ASKED, assistant("I look.", *calls), result("client-0", "a cat"), result("client-1", "é.png")
    )
    assert is_same(resolved.messages, expected.messages)


def test_a_result_with_another_id_shares_its_content() -> None:
    client = Client()
    client.ask(ASKED, answer=assistant("", ("call-0-0", "f", "{}")))
    sent = result("x", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
    resolved = client.send(ASKED, assistant("", ("x", "f", "{}")), sent)
    assert resolved.messages[2]["tool_call_id"] == "call-0-0"
    assert resolved.messages[2]["content"] is sent.message["content"]
    assert sent.message["tool_call_id"] == "x"


def test_results_with_the_same_id_belong_to_the_calls_in_order() -> None:
    client = Client()
    client.ask(ASKED, answer=assistant("", ("a", "f", "{}"), ("b", "f", "{}")))
    resolved = client.send(ASKED, assistant("", ("x", "f", "{}"), ("x", "f", "{}")), result("x", "1"), result("x", "2"))
    assert [message["tool_call_id"] for message in resolved.messages[2:]] == ["a", "b"]


def test_an_id_that_a_client_uses_in_every_turn_belongs_to_the_last_answer() -> None:
    client = Client()
    start = (ASKED, assistant("", ("x", "f", "{}")), result("x"))
    client.ask(ASKED, answer=assistant("", ("a", "f", "{}")))
    client.ask(*start, answer=assistant("", ("b", "f", "{}")))
    resolved = client.send(*start, assistant("", ("x", "f", "{}")), result("x"))
    assert [message["tool_call_id"] for message in resolved.messages[2::2]] == ["a", "b"]
    assert resolved.echoed_turns == (0, 1)


def test_an_id_of_the_client_can_be_the_id_of_an_earlier_call() -> None:
    client = Client()
    start = (ASKED, assistant("", ("a", "f", "{}")), result("a"))
    client.ask(ASKED, answer=assistant("", ("a", "f", "{}")))
    client.ask(*start, answer=assistant("", ("b", "f", "{}")))
    resolved = client.send(*start, assistant("", ("a", "f", "{}")), result("a"))
    assert resolved.messages[4]["tool_call_id"] == "b"


def test_equal_results_of_two_calls_in_another_order_keep_their_ids() -> None:
    client = Client()
    client.ask(ASKED, answer=ANSWER)
    client.send(ASKED, ANSWER, result("call-0-0"), result("call-0-1"))
    resolved = client.send(ASKED, ANSWER, result("call-0-1"), result("call-0-0"))
    assert [message["tool_call_id"] for message in resolved.messages[2:]] == ["call-0-1", "call-0-0"]


def test_an_id_that_comes_back_unchanged_belongs_to_its_own_call_again() -> None:
    client = Client()
    start = (ASKED, assistant("", ("b", "f", "{}")), result("b"))
    client.ask(ASKED, answer=assistant("", ("a", "f", "{}")))
    client.ask(*start, answer=assistant("", ("b", "f", "{}")))
    resolved = client.send(*start, assistant("", ("b", "f", "{}")), result("b"))
    assert [message["tool_call_id"] for message in resolved.messages[2::2]] == ["a", "b"]


def test_the_order_of_results_makes_another_conversation() -> None:
    client = Client()
    client.ask(ASKED, answer=ANSWER)
    client.ask(ASKED, ANSWER, *RESULTS, answer=assistant("A cat."))
    resolved = client.send(ASKED, ANSWER, *reversed(RESULTS), assistant("A cat."), user("Go on."))
    assert (resolved.foreign_reason, resolved.echoed_turns) == ("history changed", (0,))


def siblings(*answers: IncomingMessage) -> Client:
    """Return a client that got several answers to the same request."""
    client = Client()
    for answer in answers:
        client.ask(ASKED, answer=answer)
    return client


@pytest.mark.parametrize("turn", [0, 1])
def test_siblings_that_differ_in_reasoning_are_told_apart(turn: int) -> None:
    answers = [assistant("Yes.", reasoning="One."), assistant("Yes.", reasoning="Two.")]
    assert siblings(*answers).send(ASKED, answers[turn], user("Go on.")).echoed_turns == (turn,)


@pytest.mark.parametrize("turn", [0, 1])
def test_siblings_with_changed_arguments_are_told_apart_by_reasoning(turn: int) -> None:
    answers = [assistant("", ("c", "f", '{"a": 1}'), reasoning=reasoning) for reasoning in ("One.", "Two.")]
    echo = assistant("", ("c", "f", '{"a":1}'), reasoning=("One.", "Two.")[turn])
    assert siblings(*answers).send(ASKED, echo, result("c")).echoed_turns == (turn,)


@pytest.mark.parametrize("turn", [0, 1])
def test_siblings_without_reasoning_are_told_apart_by_ids(turn: int) -> None:
    answers = [assistant("", (f"call-{at}-0", "f", "{}"), reasoning=f"{at}") for at in (0, 1)]
    echo = assistant("", (f"call-{turn}-0", "f", "{}"))
    assert siblings(*answers).send(ASKED, echo, result(f"call-{turn}-0")).echoed_turns == (turn,)


def test_the_newest_of_equal_siblings_is_taken() -> None:
    client = siblings(assistant("Yes."), assistant("Yes."))
    assert client.send(ASKED, assistant("Yes."), user("Go on.")).echoed_turns == (1,)


def test_the_sibling_whose_continuation_is_known_is_taken() -> None:
    client = siblings(assistant("Yes."))
    client.ask(ASKED, assistant("Yes."), user("Go on."), answer=assistant("More."))
    client.ask(ASKED, answer=assistant("Yes."))
    resolved = client.send(ASKED, assistant("Yes."), user("Go on."), assistant("More."), user("And?"))
    assert resolved.echoed_turns == (0, 1)


def test_equal_conversations_are_told_apart_by_what_came_later() -> None:
    client = siblings(assistant("Yes."))
    start = (ASKED, assistant("Yes."), user("Go on."))
    client.ask(*start, answer=assistant("First."))
    client.ask(ASKED, answer=assistant("Yes."))
    # The second conversation begins below the newer sibling, because another message follows there.
    client.send(ASKED, assistant("Yes."), user("Other."))
    client.ask(ASKED, assistant("Yes."), user("Other."), answer=assistant("Second."))
    assert client.send(*start, assistant("First."), user("And?")).echoed_turns == (0, 1)
    assert client.send(ASKED, assistant("Yes."), user("Other."), assistant("Second."), user("And?")).echoed_turns == (
        2,
        3,
    )


def test_a_full_echo_is_preferred_to_one_that_lacks_the_text() -> None:
    client = siblings(assistant("", ("a", "f", "{}")), assistant("I look.", ("b", "f", "{}")))
    assert client.send(ASKED, assistant("", ("x", "f", "{}")), result("x")).echoed_turns == (0,)


def test_a_text_of_the_gateway_is_known_but_no_turn() -> None:
    client = Client()
    sent = assistant("The limit is reached.")
    for _ in range(2):
        client.tree.add_answer(client.send(ASKED), sent, dict(sent.message), None)
    resolved = client.send(ASKED, sent, user("Go on."))
    assert (resolved.echo, resolved.echoed_turns) == (Echo.EXACT, ())


def test_exact_mode_recognises_an_exact_echo() -> None:
    client = Client(EchoMode.EXACT)
    client.ask(ASKED, answer=ANSWER)
    assert client.send(ASKED, ANSWER, *RESULTS).echoed_turns == (0,)


@pytest.mark.parametrize(
    "parts",
    [
        (assistant("Yes.", ("c", "f", "{}")),),
        (assistant("Yes.", ("c", "f", "{ }"), reasoning="Hm."),),
        (assistant("", ("c", "f", "{}"), reasoning="Hm."),),
        (assistant("", reasoning="Hm."), assistant("Yes.", ("c", "f", "{}"))),
    ],
    ids=["reasoning dropped", "white space", "text dropped", "two messages"],
)
def test_exact_mode_does_not_recognise_another_form(parts: tuple[IncomingMessage, ...]) -> None:
    client = Client(EchoMode.EXACT)
    client.ask(ASKED, answer=assistant("Yes.", ("c", "f", "{}"), reasoning="Hm."))
    resolved = client.send(ASKED, *parts, result("c"))
    assert (resolved.echo, resolved.foreign_reason, resolved.echoed_turns) == (Echo.FOREIGN, "not exact", ())


def test_a_long_run_of_made_up_messages_is_foreign() -> None:
    client = Client()
    client.ask(ASKED, answer=assistant("Yes."))
    run = [assistant(f"part {at}") for at in range(100)]
    resolved = client.send(ASKED, *run, user("Go on."))
    assert (len(resolved.messages), resolved.echo) == (102, Echo.FOREIGN)
