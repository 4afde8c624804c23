"""One model family's renderer behind one small interface: render, bridge, parse.

The `renderers` package is imported here and only here, and only when an adapter is opened, because importing it takes
more than a second. Images are rendered as one pad token each; nothing is processed, so neither torch nor transformers
is ever needed.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from renderers_adapter.errors import AdapterError
from renderers_adapter.geometry import Geometry, geometry_for
from renderers_adapter.tokenizer import FastTokenizer, load_tokenizer
from renderers_adapter.tokens import LogicalIds, PlaceholderError, logical

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_FAMILIES = {"qwen3-vl": ("qwen_vl", "<|image_pad|>")}


class UnsupportedConversation(AdapterError):
    """A conversation that a full render and a bridge would treat differently; refused rather than misaligned."""


class UnknownRenderer(AdapterError):
    """No renderer of that name, or none that can be chosen for this model."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens of one message: where its own body lies in them, and where its images' pad tokens lie."""

    ids: LogicalIds
    content: tuple[tuple[int, int], ...]
    image_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A segment per message, then the tokens that open the assistant's turn."""

    segments: tuple[Segment, ...]
    opening: LogicalIds


@dataclass(frozen=True, slots=True)
class ParsedToolCall:
    """A tool call as it was parsed; `error` names what was wrong with it."""

    id: str | None
    name: str
    arguments: Mapping[str, Any]
    raw: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Parsed:
    """A completion as text: what is said, what was thought, which tools are called."""

    text: str
    reasoning: str | None
    tool_calls: tuple[ParsedToolCall, ...]


class RendererAdapter:
    """Messages to tokens and back, for one model. Messages are in canonical form (`{"type": "image"}` parts).

    Encoding is serialised by a lock: a fast tokenizer may keep state while it encodes.
    """

    def __init__(self, renderer: Any, tokenizer: FastTokenizer, geometry: Geometry | None, pad_id: int | None) -> None:
        self._renderer = renderer
        self._lock = threading.Lock()
        self.tokenizer = tokenizer
        self.geometry = geometry
        self.pad_id = pad_id
        self.stop_token_ids: tuple[int, ...] = tuple(renderer.get_stop_token_ids())

    @classmethod
    def open(cls, directory: Path, renderer: str) -> "RendererAdapter":
        """Load tokenizer and processor configuration from a model's directory and create its renderer.

        Raises:
            TokenizerError: the directory holds no usable tokenizer.
            UnknownRenderer: no such renderer; the message lists them.
            GeometryError: the processor configuration lacks what placeholder counts are computed from.
        """
        if renderer not in _FAMILIES:
            raise UnknownRenderer(f"renderer {renderer!r} is not known; known are: {', '.join(sorted(_FAMILIES))}.")
        tokenizer = load_tokenizer(directory)
        family, pad = _FAMILIES[renderer]
        geometry = geometry_for(family, load_processor_config(directory))
        from renderers import config_from_name, create_renderer

        made = create_renderer(tokenizer, config_from_name(renderer))
        return cls(made, tokenizer, geometry, tokenizer.token_id(pad))

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> Rendered:
        """Tokens for a whole conversation."""
        _refuse_ambiguous(messages, first=True)
        with self._lock:
            rendered = self._renderer.render(
                list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=True,
                process_multimodal=False,
            )
        return self._split(rendered, messages, 0)

    def bridge(
        self,
        opening: LogicalIds,
        completion: LogicalIds,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> Rendered | None:
        """Only the tokens that `messages` add after a completion, or None where a full render is needed.

        `opening` is what opened the assistant's turn: a renderer looks no further back than that.
        """
        if not messages or any(message["role"] == "assistant" for message in messages):
            return None
        _refuse_ambiguous(messages, first=False)
        previous, sampled = opening.tolist(), completion.tolist()
        with self._lock:
            bridged = self._renderer.bridge_to_next_turn(
                previous, sampled, list(messages), tools=list(tools) if tools else None, process_multimodal=False
            )
        known = previous + sampled
        if bridged is None or bridged.token_ids[: len(known)] != known:
            return None
        return self._split(bridged, messages, len(known))

    def parse(self, opening: LogicalIds, completion: LogicalIds) -> Parsed:
        """What a completion says."""
        with self._lock:
            parsed = self._renderer.parse_response(completion.tolist(), prompt_ids=opening.tolist())
        return Parsed(parsed.content, parsed.reasoning_content, tuple(_tool_call(call) for call in parsed.tool_calls))

    def _split(self, rendered: Any, messages: Sequence[Mapping[str, Any]], start: int) -> Rendered:
        ids = np.asarray(rendered.token_ids[start:], np.int32)
        owners = np.asarray(rendered.message_indices[start:], np.int64)
        sampled = np.asarray(rendered.sampled_mask[start:] or [False] * len(ids), np.bool_)
        body = np.asarray(rendered.is_content[start:] or [False] * len(ids), np.bool_)
        bounds = _bounds(owners, sampled, [str(message["role"]) for message in messages])
        segments = tuple(
            Segment(logical(ids[a:b]), _spans(body[a:b]), self._pads(ids[a:b], message, index))
            for index, (message, a, b) in enumerate(zip(messages, bounds[:-1], bounds[1:], strict=True))
        )
        return Rendered(segments, logical(ids[bounds[-1] :]))

    def _pads(self, ids: npt.NDArray[np.int32], message: Mapping[str, Any], index: int) -> tuple[int, ...]:
        pads = tuple(np.flatnonzero(ids == self.pad_id).tolist()) if self.pad_id is not None else ()
        images = count_images(message)
        if len(pads) != images:
            raise PlaceholderError(
                f"the {message['role']} message {index} has {images} images but renders to {len(pads)} image "
                "placeholders; does its text hold the placeholder itself?"
            )
        return pads


def count_images(message: Mapping[str, Any]) -> int:
    """How many images a canonical message holds."""
    content = message.get("content")
    return sum(part["type"] == "image" for part in content) if isinstance(content, list) else 0


def load_processor_config(directory: Path) -> dict[str, Any]:
    """The image processor's configuration of a checkpoint, as its files say."""
    for name in _PROCESSOR_FILES:
        path = directory / name
        if path.is_file():
            try:
                found = json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise AdapterError(f"{path} is not JSON: {error}.") from None
            return dict(found.get("image_processor", found))
    raise AdapterError(
        f"{directory} holds neither {' nor '.join(_PROCESSOR_FILES)}; copy it from the checkpoint: "
        "the number of tokens of an image is computed from it."
    )


def _refuse_ambiguous(messages: Sequence[Mapping[str, Any]], *, first: bool) -> None:
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "system" and not (first and index == 0):
            raise UnsupportedConversation(
                f"message {index} is a system message that is not the first message; a full render would drop it. "
                "Say it in a user message."
            )
        if role in ("system", "assistant") and count_images(message):
            raise UnsupportedConversation(
                f"message {index} is a {role} message with an image, which a full render would drop. "
                "Put the image into a user or tool message."
            )


def _bounds(owners: npt.NDArray[np.int64], sampled: npt.NDArray[np.bool_], roles: Sequence[str]) -> list[int]:
    """Where each message's tokens begin, and last where the opening of the assistant's turn begins.

    Tokens that belong to no message go to the message that follows. A past assistant message ends with what the model
    would have sampled, as it does when it was sampled: the line break after it belongs to what follows, too.
    """
    owned = np.flatnonzero(owners >= 0)
    if np.any(np.diff(owners[owned]) < 0):
        raise UnsupportedConversation("the template reorders messages, so that tokens cannot be told apart by message")
    bounds = [0]
    for index, role in enumerate(roles):
        mine = np.flatnonzero(owners == index)
        end = int(mine[-1]) + 1 if len(mine) else bounds[-1]
        if role == "assistant" and len(mine) and sampled[mine].any():
            end = int(mine[sampled[mine]][-1]) + 1
        bounds.append(end)
    return bounds


def _spans(mask: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return tuple(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _tool_call(call: Any) -> ParsedToolCall:
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
    return ParsedToolCall(call.id, call.name or "", usable, call.raw, error)
