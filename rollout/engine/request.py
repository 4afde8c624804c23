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
        session: what the turns of one conversation have in common.
        images: all images of the path, in prompt order and with multiplicity.
        expanded: the prompt that the engine must see, with `placeholders` where the images lie in it.
        known: how many of these expanded tokens earlier turns of the conversation carried.
        required: the version of the weights that must answer, or a newer one; none: any.
    """

    request_id: str
    session: str
    prompt: LogicalIds
    images: tuple[ImageRef, ...]
    expanded: ExpandedIds
    known: int
    placeholders: tuple[Placeholder, ...]
    pad_id: int | None
    sampling: Mapping[str, Any]
    stop_token_ids: tuple[int, ...]
    required: str | None = None

    @property
    def experts_from(self) -> int:
        """The last known token was sampled, but only this turn feeds it to the network."""
        return max(0, self.known - 1)
