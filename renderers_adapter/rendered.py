"""What comes out of a renderer, in our own words: tokens told apart by message, and completions read as text."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import orjson

from renderers_adapter.errors import AdapterError
from renderers_adapter.tokens import LogicalIds, PlaceholderError, logical

Span = tuple[int, int]

_DEEPEST = 32
"""Levels that a tool call may nest; a record on a queue has room for some more around it."""


class UnsupportedConversation(AdapterError):
    """A conversation that a full render and a bridge would treat differently; refused rather than misaligned."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens of one message: where its own body lies in them, and where its images' pad tokens lie."""

    ids: LogicalIds
    content: tuple[Span, ...]
    image_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A segment per message, then the tokens that open the assistant's turn."""

    segments: tuple[Segment, ...]
    opening: LogicalIds


@dataclass(frozen=True, slots=True)
class ParsedToolCall:
    """A tool call as it was parsed.

    Attributes:
        raw: what the block holds.
        error: what was wrong with it.
        text: of a malformed one, the whole block as it was sampled: no template would write it again.
    """

    id: str | None
    name: str
    arguments: Mapping[str, Any]
    raw: str
    error: str | None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A completion as text: what is said, what was thought, which tools are called."""

    text: str
    reasoning: str | None
    tool_calls: tuple[ParsedToolCall, ...]


def split_by_message(rendered: Any, messages: Sequence[Mapping[str, Any]], start: int, pad_id: int | None) -> Rendered:
    """The renderer's tokens from `start` on, as one segment per message and the opening of the assistant's turn.

    Raises:
        UnsupportedConversation: tokens of different messages are not in the order of the messages.
        PlaceholderError: a message has more or fewer placeholders than images.
    """
    # Plain lists: mostly this is one short message, and an array costs more to begin with than all of its tokens.
    ids, owners = rendered.token_ids[start:], rendered.message_indices[start:]
    nothing = [False] * len(ids)
    sampled, body = rendered.sampled_mask[start:] or nothing, rendered.is_content[start:] or nothing
    bounds = _bounds(owners, sampled, [str(message["role"]) for message in messages])
    tokens = logical(ids)
    segments = tuple(
        Segment(LogicalIds(tokens[a:b]), _spans(body[a:b]), _pads(ids[a:b], message, index, pad_id))
        for index, (message, a, b) in enumerate(zip(messages, bounds[:-1], bounds[1:], strict=True))
    )
    return Rendered(segments, LogicalIds(tokens[bounds[-1] :]))


def count_images(message: Mapping[str, Any]) -> int:
    """How many images a canonical message holds."""
    content = message.get("content")
    return sum(part["type"] == "image" for part in content) if isinstance(content, list) else 0


def read_tool_call(call: Any, sampled: Callable[[Span], str]) -> ParsedToolCall:
    """A tool call as the renderer parsed it; arguments that are not an object of plain JSON make it a malformed one.

    `sampled` tells the text of a span of the completion.
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
    usable = dict(arguments) if isinstance(arguments, Mapping) else {}
    if error is None and not isinstance(arguments, Mapping):
        error = "malformed_structure"
    text = "" if error is None else sampled(call.token_span) if call.token_span else call.raw
    return ParsedToolCall(call.id, name, usable, call.raw, error, text)


def _is_json(value: Any) -> bool:
    """Whether all who read this conversation can: a policy may also say what only Python's JSON knows.

    That is `NaN`, integers of any length, halves of characters, and lists in lists in lists.
    """
    try:
        return _nests(value) <= _DEEPEST and bool(orjson.loads(orjson.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def _nests(value: Any) -> int:
    """How deep containers lie in each other."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_nests, inner), default=0)


def _bounds(owners: Sequence[int], sampled: Sequence[bool], roles: Sequence[str]) -> list[int]:
    """Where each message's tokens begin, and last where the opening of the assistant's turn begins.

    Tokens that belong to no message go to the message that follows. A past assistant message ends with what the model
    would have sampled, as it does when it was sampled: the line break after it belongs to what follows, too.
    """
    ends, closes, latest = [0] * len(roles), [0] * len(roles), 0
    for end, (owner, was_sampled) in enumerate(zip(owners, sampled, strict=True), start=1):
        if owner < 0:
            continue
        if owner < latest:
            raise UnsupportedConversation(
                "the template reorders messages, so that tokens cannot be told apart by message"
            )
        latest, ends[owner] = owner, end
        if was_sampled:
            closes[owner] = end
    bounds = [0]
    for role, end, close in zip(roles, ends, closes, strict=True):
        bounds.append((close if role == "assistant" and close else end) or bounds[-1])
    return bounds


def _spans(mask: Sequence[bool]) -> tuple[Span, ...]:
    edges = [at for at, (before, after) in enumerate(pairwise((False, *mask, False))) if before != after]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _pads(ids: Sequence[int], message: Mapping[str, Any], index: int, pad_id: int | None) -> tuple[int, ...]:
    pads = tuple(at for at, token in enumerate(ids) if token == pad_id)
    images = count_images(message)
    if len(pads) != images:
        raise PlaceholderError(
            f"the {message['role']} message {index} has {images} images but renders to {len(pads)} image "
            "placeholders; does its text hold the placeholder itself?"
        )
    return pads
