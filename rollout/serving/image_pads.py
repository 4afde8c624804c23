"""From one pad token per image to as many as the image has merged patches.

This is the engine's own arithmetic over its own ids: it shares no code with the side that builds requests, so that the
two agreeing means something.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rollout.serving.protocol import RequestRefused


@dataclass(frozen=True, slots=True)
class ExpandedPrompt:
    """What a network would be fed, and where in it each image lies, as (offset, length)."""

    token_ids: list[int]
    placeholders: tuple[tuple[int, int], ...]


def find_pads(token_ids: list[int], pad: int, images: int) -> list[int]:
    """The offsets of the pad tokens, which must be one per image.

    Raises:
        RequestRefused: the ids are expanded already, or pads and images do not match.
    """
    offsets: list[int] = []
    for _ in range(token_ids.count(pad)):
        offsets.append(token_ids.index(pad, offsets[-1] + 1 if offsets else 0))
    for left, right in pairwise(offsets):
        if right == left + 1:
            raise RequestRefused(
                f"token_ids[{left}] and token_ids[{right}] are both image pads: the ids look expanded. "
                "With content_parts send one pad token per image; the engine expands it.",
                param="token_ids",
            )
    if len(offsets) != images:
        raise RequestRefused(
            f"token_ids hold {len(offsets)} image pads, content_parts {images} images; "
            "send every image of the conversation, once per pad, in the order of the prompt.",
            param="content_parts",
        )
    return offsets


def expand(token_ids: list[int], pads: Sequence[int], lengths: Sequence[int]) -> ExpandedPrompt:
    """Put `lengths[i]` pads in the place of the pad at `pads[i]`."""
    expanded: list[int] = []
    placeholders: list[tuple[int, int]] = []
    done = 0
    for offset, length in zip(pads, lengths, strict=True):
        expanded += token_ids[done:offset]
        placeholders.append((len(expanded), length))
        expanded += [token_ids[offset]] * length
        done = offset + 1
    expanded += token_ids[done:]
    return ExpandedPrompt(expanded, tuple(placeholders))
