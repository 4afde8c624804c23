"""Makes random conversations of an agent, and the forms in which clients send the answers back."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from rollout.gateway.dialects.base import IncomingMessage
from rollout.gateway.dialects.normal_form import incoming_message
from tests.unit.gateway.client_messages import assistant

Draw = Callable[[st.SearchStrategy[Any]], Any]
"""Draws a value while a test runs."""

PIXEL = "data:image/png;base64,iVBORw0KGgo="


@dataclass(frozen=True)
class PlannedAnswer:
    """An answer of the policy, and what the program sends next.

    Attributes:
        text: the text.
        reasoning: the reasoning.
        calls: the name and the arguments of each tool call.
        results: the content of the result of each call.
        user: the next user message; None if the results alone follow.
    """

    text: str
    reasoning: str
    calls: list[tuple[str, dict[str, Any]]]
    results: list[Any]
    user: str | None

    def call_ids(self, turn: int) -> list[str]:
        """Return the ids of the calls if this is the answer of a turn."""
        return [f"call-{turn}-{at}" for at in range(len(self.calls))]


@dataclass(frozen=True)
class ClientHabits:
    """What a client does with answers before it sends them back.

    Attributes:
        separators: the separators in the JSON of arguments.
        key_order: `kept`, `sorted` or `reversed`.
        escapes: whether letters outside ASCII become escapes.
        whole_floats: whether 1.0 becomes 1.
        keeps_reasoning: whether the reasoning comes back.
        ids: `kept`, `new`, or `per message` if the client counts the calls of each message from 0.
        text: `kept`, `line break` before it, or `dropped` beside calls.
        splits: whether the text beside calls becomes a message of its own.
        lists: whether a text is sent as a list of one part.
        no_text: how an answer without text is sent: `null`, `empty` or `absent`.
    """

    separators: tuple[str, str]
    key_order: str
    escapes: bool
    whole_floats: bool
    keeps_reasoning: bool
    ids: str
    text: str
    splits: bool
    lists: bool
    no_text: str

    def call_ids(self, own: list[str]) -> list[str]:
        """Return the ids that the client uses in place of our own."""
        if self.ids == "kept":
            return own
        return [f"call_{at}" if self.ids == "per message" else f"toolu_{own_id}" for at, own_id in enumerate(own)]

    def arguments(self, value: dict[str, Any]) -> str:
        """Return the arguments of a call as JSON text, as this client writes them."""
        return json.dumps(self.changed(value), separators=self.separators, ensure_ascii=self.escapes)

    def text_of(self, text: str, has_calls: bool) -> str:
        """Return the text of an answer, as this client keeps it."""
        if has_calls and self.text == "dropped":
            return ""
        return "\n" + text if text and self.text == "line break" else text

    def echo(self, answer: PlannedAnswer, turn: int) -> list[IncomingMessage]:
        """Return the assistant messages by which this client repeats an answer."""
        ids = self.call_ids(answer.call_ids(turn))
        calls = [
            (call_id, name, self.arguments(value)) for call_id, (name, value) in zip(ids, answer.calls, strict=True)
        ]
        reasoning = answer.reasoning if self.keeps_reasoning else ""
        text = self.text_of(answer.text, bool(calls))
        if calls and text and self.splits:
            return [assistant(text, reasoning=reasoning), assistant("", *calls)]
        return [assistant(text, *calls, reasoning=reasoning)]

    def changed(self, value: Any) -> Any:
        """Return a value of arguments as this client keeps it."""
        if isinstance(value, list):
            return [self.changed(item) for item in value]
        if isinstance(value, dict):
            keys = sorted(value) if self.key_order == "sorted" else list(value)
            return {key: self.changed(value[key]) for key in (keys[::-1] if self.key_order == "reversed" else keys)}
        if isinstance(value, float) and value.is_integer() and self.whole_floats:
            return int(value)
        return value


def sent_answer(answer: PlannedAnswer, turn: int) -> IncomingMessage:
    """Return the message by which a client repeats an answer exactly."""
    calls = [
        (call_id, name, json.dumps(value, ensure_ascii=False))
        for call_id, (name, value) in zip(answer.call_ids(turn), answer.calls, strict=True)
    ]
    return assistant(answer.text, *calls, reasoning=answer.reasoning)


def next_messages(answer: PlannedAnswer, call_ids: list[str]) -> list[IncomingMessage]:
    """Return what the program sends after an answer: the results of its calls, and a user message."""
    messages: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": call_id, "content": content}
        for call_id, content in zip(call_ids, answer.results, strict=True)
    ]
    if answer.user is not None:
        messages.append({"role": "user", "content": answer.user})
    return [incoming_message(message) for message in messages]


# The halves of surrogate pairs are no text, and no tokenizer makes them.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_letters = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=8)
_booleans = st.booleans()
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-1000, 1000).map(float),
    texts,
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
_calls = st.tuples(st.sampled_from(["view", "run", "mcp__files__read"]), st.dictionaries(texts, _values, max_size=3))
_results: st.SearchStrategy[Any] = texts | st.just(
    [{"type": "text", "text": "the screen:"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
)


@st.composite
def planned_answers(draw: st.DrawFn) -> PlannedAnswer:
    """Make an answer: text, calls or both, and the results of the calls, some with an image."""
    calls = draw(st.lists(_calls, max_size=3))
    text = draw(texts if calls else _letters)
    results: list[Any] = [draw(_results) for _ in calls]
    has_user = draw(_booleans) or not calls
    return PlannedAnswer(text, draw(texts), calls, results, draw(_letters) if has_user else None)


conversations = st.lists(planned_answers(), min_size=1, max_size=5)
habits = st.builds(
    ClientHabits,
    separators=st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")]),
    key_order=st.sampled_from(["kept", "sorted", "reversed"]),
    escapes=st.booleans(),
    whole_floats=st.booleans(),
    keeps_reasoning=st.booleans(),
    ids=st.sampled_from(["kept", "new", "per message"]),
    text=st.sampled_from(["kept", "line break", "dropped"]),
    splits=st.booleans(),
    lists=st.booleans(),
    no_text=st.sampled_from(["null", "empty", "absent"]),
)


def edit_text(answers: list[PlannedAnswer], client_habits: ClientHabits, draw: Draw) -> tuple[int, PlannedAnswer]:
    """Return the turn of one answer, and this answer with one letter of its text changed."""
    turn = draw(st.integers(0, len(answers) - 1))
    text = answers[turn].text
    assume(text and not (answers[turn].calls and client_habits.text == "dropped"))
    at = draw(st.integers(0, len(text) - 1))
    letter = "y" if text[at] == "x" else "x"
    return turn, replace(answers[turn], text=text[:at] + letter + text[at + 1 :])


def edit_arguments(answers: list[PlannedAnswer], draw: Draw) -> tuple[int, PlannedAnswer]:
    """Return the turn of one answer with calls, and this answer with one value of its arguments changed."""
    turn = draw(st.integers(0, len(answers) - 1))
    assume(answers[turn].calls)
    at = draw(st.integers(0, len(answers[turn].calls) - 1))
    name, value = answers[turn].calls[at]
    calls = [*answers[turn].calls]
    calls[at] = (name, _edit_one_value(value, draw))
    return turn, replace(answers[turn], calls=calls)


def _edit_one_value(value: Any, draw: Draw) -> Any:
    """Return a value with one change: a letter of a text, a number, or a new item in an empty list or object."""
    if isinstance(value, dict):
        if not value:
            return {"new": None}
        key = draw(st.sampled_from(list(value)))
        return {**value, key: _edit_one_value(value[key], draw)}
    if isinstance(value, list):
        if not value:
            return [None]
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _edit_one_value(value[at], draw), *value[at + 1 :]]
    if isinstance(value, str):
        at = draw(st.integers(0, len(value)))
        return value[:at] + ("y" if value[at : at + 1] == "x" else "x") + value[at + 1 :]
    if isinstance(value, int) and not isinstance(value, bool):
        return value + draw(st.sampled_from([-1, 1]))
    return {None: False, True: None, False: True}[value] if value is None or isinstance(value, bool) else str(value)
