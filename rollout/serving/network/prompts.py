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
