"""What a session asks an engine for: one turn of a conversation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from renderers_adapter.tokens import ExpandedIds, LogicalIds, Placeholder
from rollout.engine.image_refs import ImageRef


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One turn.

    Attributes:
        session_id: what the turns of one conversation have in common.
        images: all images of the path, in prompt order and with multiplicity.
        expanded_prompt: the prompt that the engine must see, with `placeholders` where the images lie in it.
        known_token_count: how many of these expanded tokens earlier turns of the conversation carried.
        required_version: the version of the weights that must answer, or a newer one; none: any.
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
    required_version: str | None = None

    @property
    def experts_start(self) -> int:
        """The last known token was sampled, but only this turn feeds it to the network."""
        return max(0, self.known_token_count - 1)
