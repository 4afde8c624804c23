"""A session's request to an engine: one turn of a conversation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from renderers_adapter.tokens import ExpandedIds, LogicalIds, Placeholder
from rollout.engine.image_refs import ImageRef


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """The request for one turn.

    Attributes:
        request_id: the name of the request, in errors and at the engine.
        session_id: the same for all turns of one conversation.
        prompt: the tokens of the conversation, with one pad token per image.
        images: all images of the prompt, in order; an image that occurs twice is in the list twice.
        expanded_prompt: the prompt that the engine must see.
        known_token_count: the number of tokens of the expanded prompt that earlier turns already had.
        placeholders: the positions of the images in the expanded prompt.
        pad_id: the image pad token; None: the model takes no images.
        sampling: the sampling parameters, with vLLM's names.
        stop_token_ids: the tokens that end the answer, in addition to those in `sampling`.
        banned_ids: the tokens that the engine must not sample, if the engine supports that.
        required_version: the engine must have this version of the weights or a newer one; None: any version.
        on_retry: called before each retry of the request.
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
        """The position of the first token whose experts are not known yet.

        It is the last known token, because the engine sampled this token in an earlier turn but did not compute it.
        """
        return max(0, self.known_token_count - 1)
