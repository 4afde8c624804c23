"""Converts the output of a renderer to this package's types: the tokens of each message, and parsed completions."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import orjson

from renderers_adapter.errors import AdapterError
from renderers_adapter.tokens import LogicalIds, PlaceholderError, as_logical_ids

Span = tuple[int, int]

_MAX_CALL_NESTING = 32
"""The maximum nesting of a tool call's arguments. Records on a queue allow only a few more levels."""


class UnsupportedConversation(AdapterError):
    """The family's template cannot write the conversation, or bridge and full render would give different tokens."""


@dataclass(frozen=True, slots=True)
class MessageSegment:
    """The tokens of one message.

    Attributes:
        ids: the tokens of the message, including those of the template.
        content_spans: the ranges (start, end) in `ids` of the message's own content; the template wrote the rest.
        image_offsets: the positions of the pad tokens of images in `ids`.
    """

    ids: LogicalIds
    content_spans: tuple[Span, ...]
    image_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RenderedMessages:
    """The tokens of several messages.

    Attributes:
        segments: the tokens of each message.
        generation_prompt: the tokens after the last message, with which the assistant's answer begins.
    """

    segments: tuple[MessageSegment, ...]
    generation_prompt: LogicalIds


@dataclass(frozen=True, slots=True)
class ParsedToolCall:
    """A tool call in a completion.

    Attributes:
        id: the id of the call; None if the family's format has no ids.
        name: the name of the tool; empty if it could not be read.
        arguments: the arguments; empty if they could not be read.
        raw: the text inside the block of the call.
        error: the problem of the call; None if it is well-formed.
        malformed_text: the text of the whole block of a malformed call; empty if the call is well-formed.
    """

    id: str | None
    name: str
    arguments: Mapping[str, Any]
    raw: str
    error: str | None
    malformed_text: str = ""


@dataclass(frozen=True, slots=True)
class ParsedCompletion:
    """The parts of a completion, as text.

    Attributes:
        text: the answer without reasoning and tool calls.
        reasoning: the reasoning before the answer; None if there is none.
        tool_calls: the tool calls, in order.
    """

    text: str
    reasoning: str | None
    tool_calls: tuple[ParsedToolCall, ...]


def split_by_message(
    rendered: Any, messages: Sequence[Mapping[str, Any]], start: int, pad_id: int | None
) -> RenderedMessages:
    """Split the renderer's tokens from `start` on; return one segment for each message, and the generation prompt.

    Raises:
        UnsupportedConversation: the tokens are not in the order of the messages.
        PlaceholderError: a message has more or fewer placeholders than images.
    """
    # Use plain lists, because there is usually one short message, for which arrays would be slower.
    ids, message_indices = rendered.token_ids[start:], rendered.message_indices[start:]
    all_false = [False] * len(ids)
    sampled_mask, content_mask = rendered.sampled_mask[start:] or all_false, rendered.is_content[start:] or all_false
    boundaries = _message_boundaries(message_indices, sampled_mask, [str(message["role"]) for message in messages])
    tokens = as_logical_ids(ids)
    segments = tuple(
        MessageSegment(
            LogicalIds(tokens[begin:end]),
            _mask_to_spans(content_mask[begin:end]),
            _image_pad_offsets(ids[begin:end], message, index, pad_id),
        )
        for index, (message, begin, end) in enumerate(zip(messages, boundaries[:-1], boundaries[1:], strict=True))
    )
    return RenderedMessages(segments, LogicalIds(tokens[boundaries[-1] :]))


def count_images(message: Mapping[str, Any]) -> int:
    """Return the number of images in a message."""
    content = message.get("content")
    return sum(part["type"] == "image" for part in content) if isinstance(content, list) else 0


def read_tool_call(call: Any, decode_span: Callable[[Span], str]) -> ParsedToolCall:
    """Convert a tool call that the renderer parsed. The call is malformed if its arguments are not a JSON object.

    `decode_span` returns the text of a range of the completion's tokens.
    """
    status = str(call.status.value)
    name, arguments, error = call.name, call.arguments, None if status == "ok" else status
    if isinstance(arguments, str) and error is None:
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            error = "invalid_json"
    if not isinstance(name, str) or not _is_json(name):
        name, error = "", error or "malformed_structure"
    if not _is_json(arguments):
        arguments, error = None, error or "unrepresentable"
    argument_map = dict(arguments) if isinstance(arguments, Mapping) else {}
    if error is None and not isinstance(arguments, Mapping):
        error = "malformed_structure"
    text = "" if error is None else decode_span(call.token_span) if call.token_span else call.raw
    return ParsedToolCall(call.id, name, argument_map, call.raw, error, text)


def _is_json(value: Any) -> bool:
    """Whether every JSON parser can read the value.

    Python's parser also accepts `NaN`, integers of any length, lone surrogates and very deep nesting.
    """
    try:
        return _nesting_depth(value) <= _MAX_CALL_NESTING and bool(orjson.loads(orjson.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def _nesting_depth(value: Any) -> int:
    """Return the number of nested levels of lists and dicts."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(_nesting_depth, children), default=0)


def _message_boundaries(
    message_indices: Sequence[int], sampled_mask: Sequence[bool], roles: Sequence[str]
) -> list[int]:
    """Return the start of each message's tokens, and as the last entry the start of the generation prompt.

    Tokens that belong to no message go to the message after them. An assistant message ends with the last token that
    the policy would sample. So the line break after it belongs to the next message, as it does after a sampled answer.
    """
    ends, sampled_ends, last_index = [0] * len(roles), [0] * len(roles), 0
    for end, (index, was_sampled) in enumerate(zip(message_indices, sampled_mask, strict=True), start=1):
        if index < 0:
            continue
        if index < last_index:
            raise UnsupportedConversation(
                "the template changes the order of messages, so the tokens cannot be split by message"
            )
        last_index, ends[index] = index, end
        if was_sampled:
            sampled_ends[index] = end
    boundaries = [0]
    for role, end, sampled_end in zip(roles, ends, sampled_ends, strict=True):
        boundaries.append((sampled_end if role == "assistant" and sampled_end else end) or boundaries[-1])
    return boundaries


def _mask_to_spans(mask: Sequence[bool]) -> tuple[Span, ...]:
    edges = [at for at, (before, after) in enumerate(pairwise((False, *mask, False))) if before != after]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _image_pad_offsets(
    ids: Sequence[int], message: Mapping[str, Any], index: int, pad_id: int | None
) -> tuple[int, ...]:
    offsets = tuple(at for at, token in enumerate(ids) if token == pad_id)
    image_count = count_images(message)
    if len(offsets) != image_count:
        raise PlaceholderError(
            f"the {message['role']} message {index} has {image_count} images, but its tokens contain {len(offsets)} "
            "image pad tokens; check that its text does not contain the pad token"
        )
    return offsets
