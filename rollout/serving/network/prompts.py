"""What the network is fed: prompts with their images as patches, and three axes of positions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rollout.images.processors import ProcessedImage
from rollout.serving.protocol import SamplingParams

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PromptImage:
    """One image of a prompt. Its name is a hash of its bytes, which were verified."""

    image_hash: str
    processed: ProcessedImage


@dataclass(frozen=True, slots=True, eq=False)
class NetworkPrompt:
    """A prompt that can be computed, and how its answer is drawn."""

    token_ids: Sequence[int]
    positions: Positions
    images: tuple[PromptImage, ...]
    sampling_params: SamplingParams
    rng: random.Random


def rope_positions(
    prompt_length: int, placeholders: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int, int]], merge_size: int
) -> Positions:
    """Where each token lies in time, height and width: text on the diagonal, an image as a plane that starts there.

    After an image text goes on behind the longer of its sides, so that a position is not the number of a token.
    """
    positions = np.empty((3, prompt_length), np.int64)
    token_index = position = 0
    for (offset, token_count), (frames, rows, columns) in zip(placeholders, grids, strict=True):
        text_length = offset - token_index
        positions[:, token_index:offset] = np.arange(position, position + text_length)
        position += text_length
        plane = np.indices((frames, rows // merge_size, columns // merge_size)).reshape(3, -1)
        positions[:, offset : offset + token_count] = position + plane
        position += max(rows, columns) // merge_size
        token_index = offset + token_count
    positions[:, token_index:] = np.arange(position, position + prompt_length - token_index)
    return positions
