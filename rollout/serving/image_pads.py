"""Replaces the one pad token of each image by as many pad tokens as the image has merged patches.

The engine shares no code with the client here, so a test of both together is a real check.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rollout.serving.protocol import RequestRefused


@dataclass(frozen=True, slots=True)
class ExpandedPrompt:
    """A prompt in the form that a network needs.

    Attributes:
        token_ids: the expanded ids.
        placeholders: the place of each image in the expanded ids, as (offset, length).
    """

    token_ids: list[int]
    placeholders: tuple[tuple[int, int], ...]


def find_image_pads(token_ids: list[int], pad_id: int, image_count: int) -> list[int]:
    """Return the offsets of the pad tokens, one for each image.

    Raises:
        RequestRefused: the ids are expanded already, or the number of pad tokens is not the number of images.
    """
    offsets = [offset for offset, token_id in enumerate(token_ids) if token_id == pad_id]
    for left, right in pairwise(offsets):
        if right == left + 1:
            raise RequestRefused(
                f"token_ids[{left}] and token_ids[{right}] are both image pads, so the ids look expanded. "
                "With content_parts, send one pad token per image; the engine expands it.",
                param="token_ids",
            )
    if len(offsets) != image_count:
        raise RequestRefused(
            f"token_ids has {len(offsets)} image pads, but content_parts has {image_count} images; "
            "send every image of the conversation, once per pad, in the order of the prompt.",
            param="content_parts",
        )
    return offsets


def expand_pads(token_ids: list[int], pad_offsets: Sequence[int], lengths: Sequence[int]) -> ExpandedPrompt:
    """Return the prompt in which the pad token at `pad_offsets[i]` is replaced by `lengths[i]` pad tokens."""
    expanded: list[int] = []
    placeholders: list[tuple[int, int]] = []
    copied_until = 0
    for offset, length in zip(pad_offsets, lengths, strict=True):
        expanded += token_ids[copied_until:offset]
        placeholders.append((len(expanded), length))
        expanded += [token_ids[offset]] * length
        copied_until = offset + 1
    expanded += token_ids[copied_until:]
    return ExpandedPrompt(expanded, tuple(placeholders))
