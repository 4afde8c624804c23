"""What the network is fed: prompts with their images as patches, and three axes of positions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rollout.images.processors import Processed
from rollout.serving.protocol import SamplingParams

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One image of a prompt. Its name is a hash of its bytes, which were verified."""

    name: str
    patches: Processed


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt that can be computed, and how its answer is drawn."""

    token_ids: Sequence[int]
    positions: Positions
    pictures: tuple[Picture, ...]
    sampling: SamplingParams
    draw: random.Random


def rope_positions(
    length: int, placeholders: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int, int]], merge: int
) -> Positions:
    """Where each token lies in time, height and width: text on the diagonal, an image as a plane that starts there.

    After an image text goes on behind the longer of its sides, so that a position is not the number of a token.
    """
    positions = np.empty((3, length), np.int64)
    token = position = 0
    for (offset, count), (frames, rows, columns) in zip(placeholders, grids, strict=True):
        text = offset - token
        positions[:, token:offset] = np.arange(position, position + text)
        position += text
        plane = np.indices((frames, rows // merge, columns // merge)).reshape(3, -1)
        positions[:, offset : offset + count] = position + plane
        position += max(rows, columns) // merge
        token = offset + count
    positions[:, token:] = np.arange(position, position + length - token)
    return positions
