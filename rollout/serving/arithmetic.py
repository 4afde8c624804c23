"""A scripted policy for the calculator environment: it makes the next call from the chain and the results so far.

It makes mistakes at a known rate. The correct call has the logit log(18). Two wrong calls have the logit 0: in one, an
operand is off by one; in the other, the JSON is cut off. So nine of ten calls are correct at temperature 1, and all
calls are correct at temperature 0.
"""

import json
import math
import re
from collections.abc import Sequence

from rollout.serving.policies import AnswerSlot, Pixels

_START = re.compile(r"Start with (-?\d+)\.")
_STEP = re.compile(r"Then (add|subtract|multiply)(?: by)? (\d+)\.")
_RESULT = re.compile(r"<tool_response>\n(-?\d+)\n</tool_response>")


class ArithmeticPolicy:
    """Does one step of the chain in each turn, and answers with the result when no step is left."""

    CORRECT_LOGIT = math.log(18)

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """Return the next call or the result; see `ScriptedPolicy.answer`."""
        start = _START.search(prompt)
        if start is None:
            return [AnswerSlot({"There is nothing to calculate.": 0.0})]
        results, steps = _RESULT.findall(prompt), _STEP.findall(prompt)
        value = int(results[-1] if results else start[1])
        if len(results) >= len(steps):
            return [AnswerSlot({f"The result is {value}.": 0.0})]
        operation, operand = steps[len(results)]
        correct_call = _tool_call(operation, value, int(operand))
        off_by_one_call = _tool_call(operation, value, int(operand) + 1)
        truncated_call = correct_call[: correct_call.index(', "b"')] + "\n</tool_call>"
        return [AnswerSlot({correct_call: self.CORRECT_LOGIT, off_by_one_call: 0.0, truncated_call: 0.0})]


def _tool_call(operation: str, a: int, b: int) -> str:
    call = {"name": "calculate", "arguments": {"operation": operation, "a": a, "b": b}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
