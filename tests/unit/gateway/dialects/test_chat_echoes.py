"""What clients send back of an answer has the key of that answer, and nothing else has it."""

import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rollout.gateway.dialects.base import AnswerChoice, AnsweredCall, IncomingMessage
from rollout.gateway.dialects.chat import ChatDialect
from tests.unit.gateway.dialects.chat_requests import ADD, CALLS, PATCH, answer, body, choice, chunks, read_one

TOOLS = [ADD, PATCH]
CHOICES = {
    "text": choice("3.5"),
    "text with white space": choice("\n\n3.5 \n"),
    "empty": choice(""),
    "reasoning alone": choice("", reasoning="Hm."),
    "calls": choice(calls=CALLS),
    "all": choice("I add.", CALLS, reasoning="Two calls.\nSo both."),
    "custom": choice(calls=(AnsweredCall("call_a", "apply_patch", '{ "input" : "caf\\u00e9" }'),)),
    "custom without input": choice(calls=(AnsweredCall("call_a", "apply_patch", '{"patch": 1}'),)),
    "unknown tool": choice(calls=(AnsweredCall("call_a", "rm", "{"),)),
    "no arguments": choice(calls=(AnsweredCall("call_a", "add", ""),)),
}
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXTS, values, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(TEXTS, JSON, max_size=4)
CALL_LISTS = st.lists(st.tuples(st.sampled_from(["add", "look_at"]), ARGUMENTS), max_size=3)

Client = Callable[[dict[str, Any]], dict[str, Any]]


def send(given_choice: AnswerChoice) -> tuple[ChatDialect, IncomingMessage, dict[str, Any]]:
    """Return a dialect that sent an answer, the answer's message, and the message as the client got it."""
    dialect = ChatDialect()
    request = dialect.read(body(tools=TOOLS))
    written = orjson.loads(dialect.write_answer(request, answer(given_choice)))
    (sent,) = dialect.sent_messages(request, answer(given_choice))
    return dialect, sent, written["choices"][0]["message"]


def put_together(given_choice: AnswerChoice) -> dict[str, Any]:
    """Return the message that a client makes of the chunks of an answer."""
    dialect = ChatDialect()
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for chunk in chunks(dialect.write_events(dialect.read(body(tools=TOOLS, stream=True)), answer(given_choice))):
        delta = chunk["choices"][0]["delta"]
        for part in delta.pop("tool_calls", ()):
            call = calls.setdefault(part.pop("index"), part)
            if call is not part:
                for kind, values in part.items():
                    for key, text in values.items():
                        call[kind][key] += text
        for key, value in delta.items():
            message[key] = message.get(key, "") + value if isinstance(value, str) else message.get(key)
    return message | ({"tool_calls": list(calls.values())} if calls else {})


def as_the_sdk(message: dict[str, Any]) -> dict[str, Any]:
    """The SDK leaves out keys that it did not get, and puts others first."""
    return dict(sorted(message.items()))


def as_a_dump(message: dict[str, Any]) -> dict[str, Any]:
    """A dump of the SDK's object has all keys of its class."""
    return {"annotations": None, "audio": None, "function_call": None, "tool_calls": None} | message


def without_null_content(message: dict[str, Any]) -> dict[str, Any]:
    """litellm leaves out the content of an answer that only calls tools."""
    return {key: value for key, value in message.items() if value is not None}


def with_empty_content(message: dict[str, Any]) -> dict[str, Any]:
    """opencode sends "" instead of null, and no reasoning as it is."""
    return {**message, "content": message["content"] or "", "reasoning_content": message.get("reasoning_content", "")}


def under_the_other_name(message: dict[str, Any]) -> dict[str, Any]:
    """Some clients keep the reasoning under the key `reasoning`."""
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    return {**rest, "reasoning": message.get("reasoning_content")}


def with_parts(message: dict[str, Any]) -> dict[str, Any]:
    """Some clients send a text as a list of one part."""
    return {**message, "content": [{"type": "text", "text": message["content"] or ""}]}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize(
    "client", [as_the_sdk, as_a_dump, without_null_content, with_empty_content, under_the_other_name, with_parts]
)
def test_an_echo_that_repeats_everything_is_exact(name: str, client: Client) -> None:
    dialect, sent, message = send(CHOICES[name])
    echo = read_one(client(message), dialect)
    assert (echo.exact_key, echo.key) == (sent.exact_key, sent.key)
    assert echo.message == sent.message


@pytest.mark.parametrize("name", CHOICES)
def test_an_echo_of_chunks_is_exact(name: str) -> None:
    dialect, sent, _ = send(CHOICES[name])
    assert read_one(put_together(CHOICES[name]), dialect).exact_key == sent.exact_key


def test_each_choice_has_its_own_message() -> None:
    dialect = ChatDialect()
    request = dialect.read(body(n=2, tools=TOOLS))
    sent = dialect.sent_messages(request, answer(CHOICES["text"], CHOICES["calls"]))
    assert [message.exact_key for message in sent] == [send(CHOICES[name])[1].exact_key for name in ("text", "calls")]


def make_choice(text: str, reasoning: str, calls: list[tuple[str, dict[str, Any]]]) -> AnswerChoice:
    return choice(
        text,
        tuple(AnsweredCall(f"call_{at}", name, json.dumps(value)) for at, (name, value) in enumerate(calls)),
        reasoning=reasoning,
    )


@given(text=TEXTS, reasoning=TEXTS, calls=CALL_LISTS)
def test_any_answer_comes_back_exact(text: str, reasoning: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    given_choice = make_choice(text, reasoning, calls)
    dialect, sent, message = send(given_choice)
    assert read_one(message, dialect).exact_key == sent.exact_key
    assert read_one(put_together(given_choice), dialect).exact_key == sent.exact_key


@given(
    text=TEXTS,
    reasoning=TEXTS,
    calls=CALL_LISTS,
    write=st.sampled_from(
        [
            lambda value: json.dumps(value, indent=1),
            lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
            lambda value: json.dumps(value, sort_keys=True),
            lambda value: value,
        ]
    ),
    keeps_reasoning=st.booleans(),
    keeps_ids=st.booleans(),
)
def test_a_rewritten_echo_has_the_same_normal_form(
    text: str,
    reasoning: str,
    calls: list[tuple[str, dict[str, Any]]],
    write: Callable[[Any], Any],
    keeps_reasoning: bool,
    keeps_ids: bool,
) -> None:
    dialect, sent, message = send(make_choice(text, reasoning, calls))
    if not keeps_reasoning:
        message.pop("reasoning_content", None)
    for at, call in enumerate(message.get("tool_calls", ())):
        call["function"]["arguments"] = write(calls[at][1])
        call["id"] = call["id"] if keeps_ids else f"other_{at}"
    assert read_one(message, dialect).key == sent.key


@given(text=TEXTS.filter(lambda text: bool(text.strip())), other=TEXTS)
def test_another_text_is_no_echo(text: str, other: str) -> None:
    assume(text.strip() != other.strip())
    dialect, sent, message = send(choice(text))
    assert read_one({**message, "content": other}, dialect).key != sent.key


@given(arguments=ARGUMENTS, key=TEXTS)
def test_another_argument_is_no_echo(arguments: dict[str, Any], key: str) -> None:
    dialect, sent, message = send(make_choice("", "", [("add", arguments)]))
    changed = {**arguments, key: ["changed", arguments.get(key)]}
    message["tool_calls"][0]["function"]["arguments"] = json.dumps(changed)
    assert read_one(message, dialect).key != sent.key


def test_another_name_of_a_tool_is_no_echo() -> None:
    dialect, sent, message = send(CHOICES["calls"])
    message["tool_calls"][1]["function"]["name"] = "sum"
    assert read_one(message, dialect).key != sent.key


def test_a_missing_call_is_no_echo() -> None:
    dialect, sent, message = send(CHOICES["calls"])
    message["tool_calls"].pop()
    assert read_one(message, dialect).key != sent.key
