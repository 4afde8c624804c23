"""Writes answers as the response objects of the Responses API, and refusals as its errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from rollout.gateway.dialects.base import Answer, AnswerChoice, AnsweredCall, RefusalReason, RequestRefused
from rollout.gateway.dialects.responses_items import ENCRYPTED_PREFIX, Item, ItemKind
from rollout.gateway.dialects.responses_tools import OfferedTool
from rollout.gateway.dialects.tool_schemas import custom_arguments, custom_input
from rollout.records.endings import RolloutLimit
from rollout.records.messages import FinishReason

_DEFAULTS: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""The keys of a request that a response repeats, and their values if the request does not have them."""
REPEATED_KEYS = frozenset(_DEFAULTS)


@dataclass(frozen=True, slots=True)
class SentAnswer:
    """An answer in the form of this dialect.

    Attributes:
        output: the items as they are sent.
        items: the items as they are read when the client sends them back.
    """

    output: tuple[Mapping[str, Any], ...]
    items: tuple[Item, ...]


def response_id(answer: Answer) -> str:
    """Return the id of the response object of an answer."""
    return f"resp_{answer.id}"


def make_output(answer: Answer, offered: Mapping[str, OfferedTool], is_encrypted: bool) -> SentAnswer:
    """Make the items of an answer: its reasoning, its text and its calls.

    An answer without text and calls has an empty text, so that agents find a message in every final answer.
    """
    choice = answer.choices[0]
    is_cut = choice.finish_reason is FinishReason.LENGTH
    output: list[dict[str, Any]] = []
    items: list[Item] = []
    if choice.reasoning:
        output.append(_reasoning_item(f"rs_{answer.id}", choice.reasoning, is_encrypted))
        items.append(Item(ItemKind.REASONING, text=choice.reasoning, answer=answer.id))
    if choice.text or not choice.calls:
        status = "incomplete" if is_cut and not choice.calls else "completed"
        output.append(_text_item(f"msg_{answer.id}", choice, status))
        items.append(Item(ItemKind.TEXT, text=choice.text, answer=answer.id))
    for index, call in enumerate(choice.calls):
        tool = offered.get(call.name) or OfferedTool(call.name)
        output.append(_call_item(f"{answer.id}_{index}", call, tool))
        arguments = custom_arguments(custom_input(call.arguments)) if tool.is_custom else call.arguments
        items.append(
            Item(ItemKind.CALL, call_id=call.id, name=call.name, arguments=arguments, answer=answer.id),
        )
    return SentAnswer(tuple(output), tuple(items))


def response_object(answer: Answer, repeated: Mapping[str, bytes], model: str, sent: SentAnswer) -> dict[str, Any]:
    """Return the response object of an answer."""
    is_cut = answer.choices[0].finish_reason is FinishReason.LENGTH
    response = _object(response_id(answer), answer.created, repeated, model)
    response["status"] = "incomplete" if is_cut else "completed"
    response["completed_at"] = answer.created
    response["incomplete_details"] = {"reason": "max_output_tokens"} if is_cut else None
    response["output"] = list(sent.output)
    response["usage"] = {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": answer.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
    if answer.limit is not RolloutLimit.NONE:
        response["rollout"] = {"limit": answer.limit.value}
    return response


def unfinished_object(response: Mapping[str, Any]) -> dict[str, Any]:
    """Return the response object as the first events of a stream show it."""
    return {
        **response,
        "status": "in_progress",
        "completed_at": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
    }


def failed_object(
    failed_id: str, created: int, repeated: Mapping[str, bytes], model: str, refusal: RequestRefused
) -> dict[str, Any]:
    """Return the response object of a request that failed after its stream had begun."""
    code = "server_error" if refusal.reason is RefusalReason.FAILED else "invalid_prompt"
    return {
        **_object(failed_id, created, repeated, model),
        "status": "failed",
        "error": {"code": code, "message": str(refusal)},
    }


def _object(identifier: str, created: int, repeated: Mapping[str, bytes], model: str) -> dict[str, Any]:
    response: dict[str, Any] = {
        "id": identifier,
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "service_tier": "default",
        "usage": None,
    }
    for key, default in _DEFAULTS.items():
        raw = repeated.get(key)
        response[key] = default if raw is None else orjson.Fragment(raw)
    return response


def _reasoning_item(item_id: str, text: str, is_encrypted: bool) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text}],
        "encrypted_content": f"{ENCRYPTED_PREFIX}{item_id}" if is_encrypted else None,
        "status": "completed",
    }


def _text_item(item_id: str, choice: AnswerChoice, status: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": choice.text, "annotations": [], "logprobs": _logprobs(choice)}
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": [part]}


def _logprobs(choice: AnswerChoice) -> Sequence[Mapping[str, Any]]:
    """Return the log-probs of all tokens that were sampled, also those of reasoning and calls."""
    return [
        {"token": token.text, "bytes": list(token.text.encode()), "logprob": token.logprob, "top_logprobs": []}
        for token in choice.tokens
    ]


def _call_item(suffix: str, call: AnsweredCall, tool: OfferedTool) -> dict[str, Any]:
    item: dict[str, Any] = {"call_id": call.id, "name": tool.name, "status": "completed"}
    if tool.namespace is not None:
        item["namespace"] = tool.namespace
    if tool.is_custom:
        return {"id": f"ctc_{suffix}", "type": "custom_tool_call", "input": custom_input(call.arguments), **item}
    return {"id": f"fc_{suffix}", "type": "function_call", "arguments": call.arguments, **item}
