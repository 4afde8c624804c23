"""The input of the network: prompts with image patches and with positions on three axes."""

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
    """One image of a prompt.

    Attributes:
        image_hash: the verified hash of the image's bytes.
        processed: the patches and the grid of the image.
    """

    image_hash: str
    processed: ProcessedImage


@dataclass(frozen=True, slots=True, eq=False)
class NetworkPrompt:
    """A prompt in the form that the network needs, and how its answer is sampled.

    Attributes:
        token_ids: the expanded ids.
        positions: the position of each token, on three axes.
        images: the images of the prompt, in order.
        sampling_params: the sampling parameters of the request.
        rng: the random number generator for the answer.
    """

    token_ids: Sequence[int]
    positions: Positions
    images: tuple[PromptImage, ...]
    sampling_params: SamplingParams
    rng: random.Random


def rope_positions(
    prompt_length: int, placeholders: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int, int]], merge_size: int
) -> Positions:
    """Return the position of each token in time, height and width. Text has the same position on all three axes.

    An image is a plane that starts at the current position. The text after it continues after the longer side of the
    plane, so a position is not the index of a token.
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
