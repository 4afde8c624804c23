"""A script that answers instead of a model, so that no GPU is needed."""

import re
from collections.abc import Sequence

from rollout.serving.policies import AnswerSlot, Pixels

TURN = re.compile(r"(\d+)\.<\|im_end\|>\s*<\|im_start\|>user\s*(Higher|Lower)")


class Halving:
    """Guesses the middle; at a temperature above 0, sometimes another number."""

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """Return the possible answers; an answer with a greater logit is likelier."""
        question = re.search(r"from 1 to (\d+)", prompt)
        low, high = 1, int(question[1]) if question else 1
        for guess, hint in TURN.findall(prompt):
            if hint == "Higher":
                low = int(guess) + 1
            else:
                high = int(guess) - 1
        return [AnswerSlot({f"{(low + high) // 2}.": 3.0, f"{high + 1}.": 0.0})]
