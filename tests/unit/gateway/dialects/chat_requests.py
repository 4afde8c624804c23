"""Requests of the dialect chat completions, answers of a policy, and what a client makes of them."""

from collections.abc import Iterable
from typing import Any

import orjson

from rollout.gateway.dialects.base import Answer, AnswerChoice, AnsweredCall, IncomingMessage, SampledToken, TurnRequest
from rollout.gateway.dialects.chat import ChatDialect
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason

PIXEL = "data:image/png;base64,iVBORw0KGgo="
IMAGE = {"type": "image_url", "image_url": {"url": PIXEL}}
QUESTION = {"role": "user", "content": "What is 1.5 + 2?"}
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
        "strict": True,
    },
}
PATCH = {"type": "custom", "custom": {"name": "apply_patch", "description": "Edit files."}}
CALLS = (AnsweredCall("call_a", "add", '{"b":  2.0,\n "a" : 1.50}'), AnsweredCall("call_b", "add", "{}"))
CALL = {"id": "call_a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1.50}'}}


def body(*messages: Any, **fields: Any) -> bytes:
    """Return the body of a request; without messages it has the question."""
    return orjson.dumps({"model": "tiny", "messages": list(messages) or [QUESTION], **fields})


def read(*messages: Any, **fields: Any) -> TurnRequest:
    """Return what a new dialect reads."""
    return ChatDialect().read(body(*messages, **fields))


def messages(request: TurnRequest) -> list[dict[str, Any]]:
    """Return the messages of a request."""
    return [incoming.message for incoming in request.messages]


def read_one(message: Any, dialect: ChatDialect | None = None) -> IncomingMessage:
    """Return a message that is read between two questions."""
    return (dialect or ChatDialect()).read(body(QUESTION, message, QUESTION)).messages[1]


def choice(
    text: str = "",
    calls: tuple[AnsweredCall, ...] = (),
    *,
    reasoning: str = "",
    finish_reason: FinishReason = FinishReason.STOP,
    tokens: tuple[SampledToken, ...] = (),
) -> AnswerChoice:
    """Return one answer of the policy."""
    return AnswerChoice(text, reasoning, calls, finish_reason, completion_tokens=20, tokens=tokens)


def answer(*choices: AnswerChoice, limit: RolloutLimit = RolloutLimit.NONE) -> Answer:
    """Return the answer of the policy to a request."""
    return Answer("a1", 1_796_000_000, choices, prompt_tokens=100, cached_tokens=64, limit=limit)


def completion(given: Answer, **fields: Any) -> dict[str, Any]:
    """Return the object that answers the question."""
    dialect = ChatDialect()
    written: dict[str, Any] = orjson.loads(dialect.write_answer(dialect.read(body(**fields)), given))
    return written


def chunks(stream: Iterable[bytes]) -> list[dict[str, Any]]:
    """Return the data of server-sent events without the last one, after a look at their form."""
    events = list(stream)
    assert events.pop() == b"data: [DONE]\n\n"
    parsed = []
    for event in events:
        data, *rest = event.split(b"\n")
        assert rest == [b"", b""]
        parsed.append(orjson.loads(data.removeprefix(b"data: ")))
    return parsed


def streamed(given: Answer, **fields: Any) -> list[dict[str, Any]]:
    """Return the chunks that answer the question."""
    dialect = ChatDialect()
    return chunks(dialect.write_events(dialect.read(body(stream=True, **fields)), given))
