"""Writes answers in the form of chat completions: one JSON object, chunks of a stream, and errors."""

from collections.abc import Iterator
from typing import Any

import orjson

from rollout.gateway.dialects.base import (
    Answer,
    AnswerChoice,
    AnsweredCall,
    RefusalReason,
    RequestRefused,
    SampledToken,
    TurnRequest,
)
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason, Message

_ERROR_TYPES = {
    RefusalReason.UNKNOWN_KEY: ("authentication_error", "invalid_api_key"),
    RefusalReason.NOT_FOUND: ("not_found_error", "not_found"),
    RefusalReason.ENDED: ("invalid_request_error", "rollout_ended"),
    RefusalReason.TOO_LARGE: ("invalid_request_error", "request_too_large"),
    RefusalReason.FAILED: ("server_error", "rollout_failed"),
}
_DEFAULT_ERROR = ("invalid_request_error", "invalid_request")
_DONE = b"data: [DONE]\n\n"


def write_completion(request: TurnRequest, answer: Answer) -> bytes:
    """Return an answer as one JSON object."""
    choices = [
        {
            "index": index,
            "message": _written_message(choice),
            "finish_reason": _finish_reason(choice),
            "logprobs": _logprobs(choice) if request.wants_logprobs else None,
        }
        for index, choice in enumerate(answer.choices)
    ]
    return orjson.dumps({**_head(request, answer, "chat.completion"), "choices": choices, "usage": _usage(answer)})


def write_chunks(request: TurnRequest, answer: Answer, *, include_usage: bool) -> Iterator[bytes]:
    """Return an answer as the chunks of a stream, in the official order."""
    head = _head(request, answer, "chat.completion.chunk")
    if include_usage:
        head["usage"] = None
    for index, choice in enumerate(answer.choices):
        for delta in _deltas(choice):
            yield _chunk(head, index, delta)
        if request.wants_logprobs and choice.tokens:
            yield _chunk(head, index, {}, logprobs=_logprobs(choice))
        yield _chunk(head, index, {}, finish_reason=_finish_reason(choice))
    if include_usage:
        yield _event({**head, "choices": [], "usage": _usage(answer)})
    yield _DONE


def echoed_message(choice: AnswerChoice) -> Message:
    """Return the message that is read from an exact echo of a choice."""
    message: Message = {"role": "assistant", "content": choice.text}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.calls:
        message["tool_calls"] = [_written_call(call) for call in choice.calls]
    return message


def write_error(refusal: RequestRefused) -> bytes:
    """Return the JSON of an error."""
    return orjson.dumps(_error(refusal))


def write_error_events(refusal: RequestRefused) -> Iterator[bytes]:
    """Return the events of an error in a stream."""
    yield _event(_error(refusal))
    yield _DONE


def _deltas(choice: AnswerChoice) -> Iterator[dict[str, Any]]:
    """Return what the chunks add to the message of a choice."""
    yield {"role": "assistant", "content": ""}
    if choice.reasoning:
        yield {"reasoning_content": choice.reasoning}
    if choice.text:
        yield {"content": choice.text}
    for at, call in enumerate(choice.calls):
        written = _written_call(call)
        yield {"tool_calls": [{"index": at, **written, "function": {"name": call.name, "arguments": ""}}]}
        yield {"tool_calls": [{"index": at, "function": {"arguments": call.arguments}}]}


def _written_message(choice: AnswerChoice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.text or (None if choice.calls else ""),
        "refusal": None,
    }
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.calls:
        message["tool_calls"] = [_written_call(call) for call in choice.calls]
    return message


def _written_call(call: AnsweredCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _head(request: TurnRequest, answer: Answer, kind: str) -> dict[str, Any]:
    head: dict[str, Any] = {
        "id": f"chatcmpl-{answer.id}",
        "object": kind,
        "created": answer.created,
        "model": request.model,
    }
    if answer.limit is not RolloutLimit.NONE:
        head["rollout"] = {"limit": answer.limit.value}
    return head


def _finish_reason(choice: AnswerChoice) -> str:
    if choice.finish_reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if choice.calls else "stop"


def _usage(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def _logprobs(choice: AnswerChoice) -> dict[str, Any]:
    return {"content": [_token(token) for token in choice.tokens], "refusal": None}


def _token(token: SampledToken) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": token.logprob,
        "bytes": list(token.text.encode("utf-8", "replace")),
        "top_logprobs": [],
    }


def _chunk(
    head: dict[str, Any],
    index: int,
    delta: dict[str, Any],
    *,
    finish_reason: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
    return _event({**head, "choices": [choice]})


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _error(refusal: RequestRefused) -> dict[str, Any]:
    kind, code = _ERROR_TYPES.get(refusal.reason, _DEFAULT_ERROR)
    return {"error": {"message": str(refusal), "type": kind, "param": refusal.parameter, "code": code}}
