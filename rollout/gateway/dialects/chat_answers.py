"""Writes answers as chat completions: one object, or chunks in the official order, and errors in a stream.

An answer is whole when it is written. So each choice has one chunk for its reasoning, one for its text, and two for
each call: the first has the id and the name, the second has the arguments.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import orjson

from rollout.gateway.dialects.base import Answer, AnswerChoice, AnsweredCall, RequestRefused
from rollout.gateway.dialects.openai_errors import error_object
from rollout.gateway.dialects.session_messages import assistant_message
from rollout.gateway.dialects.tool_schemas import custom_arguments, custom_input
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason, Message

_LEAST_LOGPROB = -9999.0
"""The API's own value for a token that is very unlikely. JSON has no infinity."""
_DONE = b"data: [DONE]\n\n"


def completion_bytes(answer: Answer, model: str, custom: Collection[str], has_logprobs: bool) -> bytes:
    """Return an answer as one JSON object. `custom` has the names of the custom tools."""
    choices = [
        {
            "index": index,
            "message": _message(choice, custom),
            "logprobs": _logprobs(choice) if has_logprobs else None,
            "finish_reason": _finish_reason(choice),
        }
        for index, choice in enumerate(answer.choices)
    ]
    return orjson.dumps(_head(answer, model, "chat.completion") | {"choices": choices, "usage": _usage(answer)})


def completion_events(
    answer: Answer, model: str, custom: Collection[str], *, has_logprobs: bool, has_usage: bool
) -> Iterator[bytes]:
    """Yield an answer as chunks. With `has_usage` the last chunk has the numbers of tokens."""
    head = _head(answer, model, "chat.completion.chunk")
    usage: dict[str, Any] = {"usage": None} if has_usage else {}
    for index, choice in enumerate(answer.choices):
        logprobs = _logprobs(choice) if has_logprobs else None
        has_text_chunk = bool(choice.text)
        for delta in _deltas(choice, custom):
            carries_logprobs = "content" in delta and "role" not in delta
            chunk = {
                "index": index,
                "delta": delta,
                "logprobs": logprobs if carries_logprobs else None,
                "finish_reason": None,
            }
            yield _event(head | {"choices": [chunk]} | usage)
        last = {
            "index": index,
            "delta": {},
            "logprobs": None if has_text_chunk else logprobs,
            "finish_reason": _finish_reason(choice),
        }
        yield _event(head | {"choices": [last]} | usage)
    if has_usage:
        yield _event(head | {"choices": [], "usage": _usage(answer)})
    yield _DONE


def failure_events(refusal: RequestRefused) -> tuple[bytes, ...]:
    """Return the events of an error in a stream. The SDK raises at the first one; the second ends other clients."""
    return _event({"error": error_object(refusal)}), _DONE


def echoed_message(choice: AnswerChoice, custom: Collection[str]) -> Message:
    """Return the message that is read when a client sends this choice back as it was."""
    return assistant_message(
        choice.text, choice.reasoning, [(call.id, call.name, _echoed_arguments(call, custom)) for call in choice.calls]
    )


def _echoed_arguments(call: AnsweredCall, custom: Collection[str]) -> str:
    return custom_arguments(custom_input(call.arguments)) if call.name in custom else call.arguments


def _head(answer: Answer, model: str, kind: str) -> dict[str, Any]:
    """Return the keys that the answer and each of its chunks have."""
    head: dict[str, Any] = {
        "id": f"chatcmpl-{answer.id}",
        "object": kind,
        "created": answer.created,
        "model": model,
        "system_fingerprint": None,
    }
    if answer.limit is not RolloutLimit.NONE:
        head["rollout"] = {"limit": answer.limit.value}
    return head


def _message(choice: AnswerChoice, custom: Collection[str]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _content(choice), "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.calls:
        message["tool_calls"] = [_call(call, custom) for call in choice.calls]
    return message


def _content(choice: AnswerChoice) -> str | None:
    """Return the text; None if the answer calls tools without a text, as in the official API."""
    return None if choice.calls and not choice.text else choice.text


def _call(call: AnsweredCall, custom: Collection[str]) -> dict[str, Any]:
    if call.name in custom:
        return {
            "id": call.id,
            "type": "custom",
            "custom": {"name": call.name, "input": custom_input(call.arguments)},
        }
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _deltas(choice: AnswerChoice, custom: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield what each chunk of a choice adds, without the last one."""
    yield {"role": "assistant", "content": None if _content(choice) is None else "", "refusal": None}
    if choice.reasoning:
        yield {"reasoning_content": choice.reasoning}
    if choice.text:
        yield {"content": choice.text}
    for index, call in enumerate(choice.calls):
        whole = _call(call, custom)
        kind = whole["type"]
        key = "input" if kind == "custom" else "arguments"
        yield {"tool_calls": [{"index": index, **whole, kind: {"name": call.name, key: ""}}]}
        yield {"tool_calls": [{"index": index, kind: {key: whole[kind][key]}}]}


def _finish_reason(choice: AnswerChoice) -> str:
    if choice.finish_reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if choice.calls else "stop"


def _logprobs(choice: AnswerChoice) -> dict[str, Any]:
    """Return the log-probs of all tokens that were sampled, also those of reasoning and calls."""
    return {
        "content": [
            {
                "token": token.text,
                "bytes": list(token.text.encode()),
                "logprob": max(token.logprob, _LEAST_LOGPROB),
                "top_logprobs": [],
            }
            for token in choice.tokens
        ],
        "refusal": None,
    }


def _usage(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(value)
