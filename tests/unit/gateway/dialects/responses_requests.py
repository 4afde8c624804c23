"""Requests of the dialect Responses, answers of a policy, and what a client sends back of them."""

from collections.abc import Iterable
from typing import Any

import orjson

from rollout.gateway.dialects.base import Answer, AnswerChoice, AnsweredCall, TurnRequest
from rollout.gateway.dialects.responses import ResponsesDialect
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason

PIXEL = "data:image/png;base64,iVBORw0KGgo="
QUESTION = {"role": "user", "content": "What is 1.5 + 2?"}
ADD = {
    "type": "function",
    "name": "add",
    "description": "Add two numbers.",
    "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
    "strict": True,
}
CALLS = (AnsweredCall("call_a", "add", '{"b":  2.0,\n "a" : 1.50}'), AnsweredCall("call_b", "add", "{}"))


def body(input: Any = "What is 1.5 + 2?", **fields: Any) -> bytes:
    """Return the body of a request."""
    return orjson.dumps({"model": "tiny", "input": input, **fields})


def answer(
    text: str = "",
    calls: tuple[AnsweredCall, ...] = (),
    *,
    reasoning: str = "",
    id: str = "a1",
    finish_reason: FinishReason = FinishReason.STOP,
    limit: RolloutLimit = RolloutLimit.NONE,
) -> Answer:
    """Return an answer of the policy."""
    choice = AnswerChoice(text, reasoning, calls, finish_reason, completion_tokens=20)
    return Answer(id, 1_796_000_000, (choice,), prompt_tokens=100, cached_tokens=64, limit=limit)


def response(dialect: ResponsesDialect, request: TurnRequest, given: Answer) -> dict[str, Any]:
    """Return the response object of an answer."""
    written: dict[str, Any] = orjson.loads(dialect.write_answer(request, given))
    return written


def output(dialect: ResponsesDialect, given: Answer, **fields: Any) -> list[dict[str, Any]]:
    """Return the items of an answer to the question."""
    items: list[dict[str, Any]] = response(dialect, dialect.read(body([QUESTION], **fields)), given)["output"]
    return items


def events(stream: Iterable[bytes]) -> list[dict[str, Any]]:
    """Return the data of server-sent events, after a look at their form."""
    parsed = []
    for event in stream:
        first, second, *rest = event.split(b"\n")
        assert rest == [b"", b""]
        data = orjson.loads(second.removeprefix(b"data: "))
        assert first == b"event: " + data["type"].encode()
        parsed.append(data)
    return parsed


def messages(request: TurnRequest) -> list[dict[str, Any]]:
    """Return the messages of a request."""
    return [incoming.message for incoming in request.messages]
