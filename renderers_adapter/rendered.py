"""What comes out of a renderer, in our own words: tokens told apart by message, and completions read as text."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from renderers_adapter.errors import AdapterError
from renderers_adapter.tokens import LogicalIds, PlaceholderError, logical

Span = tuple[int, int]


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
    ids = np.asarray(rendered.token_ids[start:], np.int32)
    nothing = [False] * len(ids)
    owners = np.asarray(rendered.message_indices[start:], np.int64)
    sampled = np.asarray(rendered.sampled_mask[start:] or nothing, np.bool_)
    body = np.asarray(rendered.is_content[start:] or nothing, np.bool_)
    bounds = _bounds(owners, sampled, [str(message["role"]) for message in messages])
    segments = tuple(
        Segment(logical(ids[a:b]), _spans(body[a:b]), _pads(ids[a:b], message, index, pad_id))
        for index, (message, a, b) in enumerate(zip(messages, bounds[:-1], bounds[1:], strict=True))
    )
    return Rendered(segments, logical(ids[bounds[-1] :]))


def count_images(message: Mapping[str, Any]) -> int:
    """How many images a canonical message holds."""
    content = message.get("content")
    return sum(part["type"] == "image" for part in content) if isinstance(content, list) else 0


def read_tool_call(call: Any, sampled: Callable[[Span], str]) -> ParsedToolCall:
    """A tool call as the renderer parsed it; arguments that are not an object make it a malformed one.

    `sampled` tells the text of a span of the completion.
    """
    status = str(call.status.value)
    arguments, error = call.arguments, None if status == "ok" else status
    if isinstance(arguments, str) and error is None:
        try:
            arguments = json.loads(arguments)
        except ValueError:
            error = "invalid_json"
    if error is None and not isinstance(arguments, Mapping):
        error = "malformed_structure"
    usable = dict(arguments) if isinstance(arguments, Mapping) else {}
    text = "" if error is None else sampled(call.token_span) if call.token_span else call.raw
    return ParsedToolCall(call.id, call.name or "", usable, call.raw, error, text)


def _bounds(owners: npt.NDArray[np.int64], sampled: npt.NDArray[np.bool_], roles: Sequence[str]) -> list[int]:
    """Where each message's tokens begin, and last where the opening of the assistant's turn begins.

    Tokens that belong to no message go to the message that follows. A past assistant message ends with what the model
    would have sampled, as it does when it was sampled: the line break after it belongs to what follows, too.
    """
    owned = np.flatnonzero(owners >= 0)
    ordered = owners[owned]
    if np.any(np.diff(ordered) < 0):
        raise UnsupportedConversation("the template reorders messages, so that tokens cannot be told apart by message")
    edges = np.searchsorted(ordered, np.arange(len(roles) + 1))
    bounds = [0]
    for role, first, last in zip(roles, edges[:-1], edges[1:], strict=True):
        mine = owned[first:last]
        if role == "assistant" and sampled[mine].any():
            mine = mine[sampled[mine]]
        bounds.append(int(mine[-1]) + 1 if len(mine) else bounds[-1])
    return bounds


def _spans(mask: npt.NDArray[np.bool_]) -> tuple[Span, ...]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return tuple(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _pads(ids: npt.NDArray[np.int32], message: Mapping[str, Any], index: int, pad_id: int | None) -> tuple[int, ...]:
    pads = tuple(np.flatnonzero(ids == pad_id).tolist()) if pad_id is not None else ()
    images = count_images(message)
    if len(pads) != images:
        raise PlaceholderError(
            f"the {message['role']} message {index} has {images} images but renders to {len(pads)} image "
            "placeholders; does its text hold the placeholder itself?"
        )
    return pads
