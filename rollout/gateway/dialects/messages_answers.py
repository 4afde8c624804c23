"""Writes answers in the form of Anthropic Messages: one JSON object, server-sent events, token counts and errors."""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import orjson

from rollout.gateway.dialects.base import (
    Answer,
    AnswerChoice,
    AnsweredCall,
    RefusalReason,
    RequestRefused,
    TurnRequest,
)
from rollout.gateway.dialects.messages_blocks import compact_json
from rollout.gateway.dialects.session_messages import assistant_message
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason, Message

_ERROR_TYPES = {
    RefusalReason.INVALID: "invalid_request_error",
    RefusalReason.TOO_LARGE: "request_too_large",
    RefusalReason.UNKNOWN_KEY: "authentication_error",
    RefusalReason.ENDED: "invalid_request_error",
    RefusalReason.NOT_FOUND: "not_found_error",
    RefusalReason.FAILED: "api_error",
}
_NO_ARGUMENTS = "{}"


def write_message(request: TurnRequest, answer: Answer) -> bytes:
    """Return an answer as one JSON object."""
    choice = answer.choices[0]
    content: list[dict[str, Any]] = []
    if choice.reasoning:
        content.append({"type": "thinking", "thinking": choice.reasoning, "signature": _signature(answer)})
    if _has_text(choice):
        content.append({"type": "text", "text": choice.text, "citations": None})
    for call in choice.calls:
        shown, _ = _arguments(call)
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": orjson.Fragment(shown)})
    message = _message(request, answer)
    message |= {"content": content, "stop_reason": _stop_reason(answer), "usage": _usage(answer)}
    message["stop_sequence"] = _stop_sequence(answer)
    return orjson.dumps(message)


def write_message_events(request: TurnRequest, answer: Answer) -> Iterator[bytes]:
    """Return an answer as server-sent events in the official order."""
    choice = answer.choices[0]
    yield _event({"type": "message_start", "message": _message(request, answer)})
    yield _event({"type": "ping"})
    index = 0
    if choice.reasoning:
        yield from _block(
            index,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": choice.reasoning},
            {"type": "signature_delta", "signature": _signature(answer)},
        )
        index += 1
    if _has_text(choice):
        start: dict[str, Any] = {"type": "text", "text": "", "citations": None}
        yield from _block(index, start, *([{"type": "text_delta", "text": choice.text}] if choice.text else ()))
        index += 1
    for call in choice.calls:
        shown, _ = _arguments(call)
        start = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        yield from _block(index, start, {"type": "input_json_delta", "partial_json": shown})
        index += 1
    delta = {"stop_reason": _stop_reason(answer), "stop_sequence": _stop_sequence(answer)}
    yield _event({"type": "message_delta", "delta": delta, "usage": _usage(answer)})
    yield _event({"type": "message_stop"})


def echoed_message(choice: AnswerChoice) -> Message:
    """Return the message that is read from an exact echo of an answer."""
    calls = [(call.id, call.name, _arguments(call)[1]) for call in choice.calls]
    return assistant_message(choice.text, choice.reasoning, calls)


def write_token_count(count: int) -> bytes:
    """Return the answer to a request for the number of tokens in a prompt."""
    return orjson.dumps({"input_tokens": count})


def write_error(refusal: RequestRefused) -> bytes:
    """Return the JSON of an error."""
    return orjson.dumps(_error(refusal))


def write_error_event(refusal: RequestRefused) -> bytes:
    """Return the event of an error in a stream."""
    return _event(_error(refusal))


def _message(request: TurnRequest, answer: Answer) -> dict[str, Any]:
    """Return the message of an answer before anything is in it, as streams start with it."""
    message: dict[str, Any] = {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(answer) | {"output_tokens": 0},
    }
    if answer.limit is not RolloutLimit.NONE:
        message["rollout"] = {"limit": answer.limit.value}
    return message


def _usage(answer: Answer) -> dict[str, int]:
    """Return the numbers of tokens. In this API, `input_tokens` does not count cached tokens."""
    return {
        "input_tokens": answer.prompt_tokens - answer.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answer.cached_tokens,
        "output_tokens": answer.completion_tokens,
    }


def _stop_reason(answer: Answer) -> str:
    choice = answer.choices[0]
    if answer.limit is not RolloutLimit.NONE:
        return "end_turn"
    if choice.finish_reason is FinishReason.LENGTH:
        return "max_tokens"
    if choice.calls:
        return "tool_use"
    return "end_turn" if choice.stop_text is None else "stop_sequence"


def _stop_sequence(answer: Answer) -> str | None:
    choice = answer.choices[0]
    return None if choice.calls else choice.stop_text


def _has_text(choice: AnswerChoice) -> bool:
    """Whether an answer has a text block. One without calls has it even if it is empty: programs read its text."""
    return bool(choice.text) or not choice.calls


def _signature(answer: Answer) -> str:
    """Return the signature of a thinking block. Clients only send it back; nothing depends on it."""
    return base64.b64encode(hashlib.blake2b(answer.id.encode(), digest_size=48).digest()).decode()


def _arguments(call: AnsweredCall) -> tuple[str, str]:
    """Return the arguments of a call as the client gets them, and as they are read from its echo.

    The client gets the text of the policy, if it is a JSON object that an echo can carry, and otherwise no arguments.
    """
    try:
        value = orjson.loads(call.arguments)
        if isinstance(value, dict):
            return call.arguments, compact_json(value)
    except (ValueError, TypeError, RecursionError):
        pass
    return _NO_ARGUMENTS, _NO_ARGUMENTS


def _block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> Iterator[bytes]:
    """Return the events of one content block."""
    yield _event({"type": "content_block_start", "index": index, "content_block": start})
    for delta in deltas:
        yield _event({"type": "content_block_delta", "index": index, "delta": delta})
    yield _event({"type": "content_block_stop", "index": index})


def _error(refusal: RequestRefused) -> dict[str, Any]:
    return {
        "type": "error",
        "error": {"type": _ERROR_TYPES[refusal.reason], "message": str(refusal)},
        "request_id": None,
    }


def _event(value: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (value["type"].encode(), orjson.dumps(value))
