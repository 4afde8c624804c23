"""A script for the calculator environment: it reads the chain and the results so far, and makes the next call.

It errs at a known rate. A call is right with the margin log(18); with the margin 0 it is one of two mistakes: an
operand that is off by one, or JSON that breaks off. So at temperature 1 nine calls in ten are right, and at 0 all are.
"""

import json
import math
import re
from collections.abc import Sequence

from rollout.serving.policies import Pixels, Slot

_START = re.compile(r"Start with (-?\d+)\.")
_STEP = re.compile(r"Then (add|subtract|multiply)(?: by)? (\d+)\.")
_RESULT = re.compile(r"<tool_response>\n(-?\d+)\n</tool_response>")


class ArithmeticPolicy:
    """Does one step a turn, and says the result when no step is left."""

    MARGIN = math.log(18)

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[Slot]:
        start = _START.search(prompt)
        if start is None:
            return [Slot({"There is nothing to calculate.": 0.0})]
        results, steps = _RESULT.findall(prompt), _STEP.findall(prompt)
        value = int(results[-1] if results else start[1])
        if len(results) >= len(steps):
            return [Slot({f"The result is {value}.": 0.0})]
        operation, operand = steps[len(results)]
        right, wrong = _call(operation, value, int(operand)), _call(operation, value, int(operand) + 1)
        broken = right[: right.index(', "b"')] + "\n</tool_call>"
        return [Slot({right: self.MARGIN, wrong: 0.0, broken: 0.0})]


def _call(operation: str, a: int, b: int) -> str:
    call = {"name": "calculate", "arguments": {"operation": operation, "a": a, "b": b}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
