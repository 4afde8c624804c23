"""Scripted policies, which answer in the embedded engine instead of a neural network.

A policy sees only the decoded prompt and the pixels of the images of one request. It sees no file names, no ids, no
seeds and no earlier requests. It answers with a list of slots; the engine samples one candidate for each slot.

    class Coin:
        def answer(self, prompt, images):
            return [AnswerSlot({"heads": 0.0, "tails": 0.0})]

The name of a policy is `package.module:Class`. The module may be beside the YAML, on PYTHONPATH, or installed.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rollout.environments.palette import PALETTE
from rollout.errors import ConfigurationError
from rollout.import_path import describe_conflict

Pixels = npt.NDArray[np.uint8]
"""One image, an array of the shape height x width x RGB."""


@dataclass(frozen=True, slots=True)
class AnswerSlot:
    """One slot of an answer: its candidates, each with a logit.

    At temperature T > 0, the engine samples a candidate with probability exp(logit / T) / sum of exp(logits / T). At T
    = 0, it takes the first candidate with the greatest logit. A fixed text is a slot with one candidate. The tokens of
    a candidate must not be the beginning of another candidate's tokens.

    Attributes:
        logits: the logit of each candidate, by its text.
    """

    logits: Mapping[str, float]


@runtime_checkable
class ScriptedPolicy(Protocol):
    """The interface of a scripted policy. The class is called once, without arguments; many threads use the object."""

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """Return the slots of the answer to this prompt, which has one `<|image_pad|>` for each image."""
        ...


class PolicyNotFound(ConfigurationError):
    """There is no scripted policy with this name, or it cannot be created."""


class ColorPolicy:
    """Names the colours of the images in the last user turn, or of all images if that turn has none.

    It makes mistakes at a known rate. With K colours, the correct colour has the logit log(9 (K - 1)), and each other
    colour has the logit 0. At temperature T, an answer is then correct with probability 1 / (1 + (K - 1) (9 (K - 1)) **
    (-1 / T)). At T = 1, this is nine times in ten. For an image without a saturated pixel, the colour is a guess.
    """

    CORRECT_LOGIT = math.log(9 * (len(PALETTE) - 1))

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """Return a slot for each colour to name; see `ScriptedPolicy.answer`."""
        last_turn = prompt.rpartition("<|im_start|>user\n")[2]
        question_images = images[len(images) - last_turn.count("<|image_pad|>") :] or images
        if not question_images:
            return [AnswerSlot({"I see no picture.": 0.0})]
        colors = [nearest_color(pixels) for pixels in question_images]
        return [self._color_slot(color, prefix=" " if position else "") for position, color in enumerate(colors)]

    def _color_slot(self, color: str | None, *, prefix: str) -> AnswerSlot:
        return AnswerSlot({prefix + name: self.CORRECT_LOGIT if name == color else 0.0 for name in PALETTE})


def nearest_color(pixels: Pixels) -> str | None:
    """Return the palette's colour that is closest to the mean of the saturated pixels; None if all pixels are grey."""
    stride = max(1, min(pixels.shape[:2]) // 48)
    # One row per channel, because numpy is slow if it reduces over an axis of length three.
    channels = np.array(pixels[::stride, ::stride].reshape(-1, 3).T, dtype=np.int16, order="C")
    saturated = channels[:, np.ptp(channels, axis=0) > 80]
    if saturated.size == 0:
        return None
    distances = ((_COLOR_VALUES - saturated.mean(axis=1)) ** 2).sum(axis=1)
    return _COLOR_NAMES[int(distances.argmin())]


def load_policy(name: str) -> ScriptedPolicy:
    """Create the policy with the name `package.module:Class`.

    Raises:
        PolicyNotFound: the module or the class does not exist, cannot be created, or has no `answer`.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise PolicyNotFound(f"The policy {name!r} has no colon; write package.module:Class.")
    try:
        policy = getattr(importlib.import_module(module), attribute)()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if (conflict := describe_conflict(error)) is not None:
            reason += f": {conflict}"
        raise PolicyNotFound(
            f"The policy {name!r} cannot be created: {reason}. Expected package.module:Class, where Class() needs no "
            "arguments, and the module is beside the YAML, on PYTHONPATH, or installed."
        ) from error
    if not isinstance(policy, ScriptedPolicy):
        raise PolicyNotFound(f"The policy {name!r} has no method answer(prompt, images).")
    return policy


_COLOR_NAMES = tuple(PALETTE)
_COLOR_VALUES = np.array(list(PALETTE.values()), dtype=np.float64)
