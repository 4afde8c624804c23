"""A script that answers instead of a model, so that no GPU is needed."""

from collections.abc import Sequence

import numpy as np
from rollout.serving.policies import AnswerSlot, Pixels

from rollout.templates.images.environment import CORNERS


class Eye:
    """Looks at the last picture; with a temperature above 0, it is sometimes wrong."""

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """Return the possible answers; an answer with a greater logit is likelier."""
        corner = find_disc(images[-1])
        return [AnswerSlot({name: 3.0 if name == corner else 0.0 for name in CORNERS})]


def find_disc(pixels: Pixels) -> str:
    """Return the corner of the red disc; red pixels have less green than grey ones."""
    rows, columns = np.nonzero(pixels[:, :, 1] < 64)
    height, width = pixels.shape[:2]
    vertical = "top" if rows.mean() < height / 2 else "bottom"
    horizontal = "left" if columns.mean() < width / 2 else "right"
    return f"{vertical} {horizontal}"
