"""A session's request to an engine: one turn of a conversation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from renderers_adapter.tokens import ExpandedIds, LogicalIds, Placeholder
from rollout.engine.image_refs import ImageRef


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One turn.

    Attributes:
        request_id: the name of the request, in errors and at the engine.
        session_id: the same for all turns of one conversation.
        prompt: the tokens of the conversation, with one pad token per image.
        images: all images of the path, in prompt order and with multiplicity.
        expanded_prompt: the prompt that the engine must see.
        known_token_count: how many of the expanded tokens earlier turns already had.
        placeholders: where the images are in the expanded prompt.
        pad_id: the image pad token; None: the model takes no images.
        sampling: the sampling parameters, under vLLM's names.
        stop_token_ids: the tokens that end the answer, besides those in `sampling`.
        banned_ids: the tokens that the engine must not sample, if it supports that.
        required_version: the version of the weights that must answer, or a newer one; None: any.
        on_retry: called each time before the request is sent again.
    """

    request_id: str
    session_id: str
    prompt: LogicalIds
    images: tuple[ImageRef, ...]
    expanded_prompt: ExpandedIds
    known_token_count: int
    placeholders: tuple[Placeholder, ...]
    pad_id: int | None
    sampling: Mapping[str, Any]
    stop_token_ids: tuple[int, ...]
    banned_ids: tuple[int, ...] = ()
    required_version: str | None = None
    on_retry: Callable[[], None] = field(default=lambda: None, compare=False)

    @property
    def experts_start(self) -> int:
        """The first token whose experts are new. It is the last known one: sampled before, first computed now."""
        return max(0, self.known_token_count - 1)
