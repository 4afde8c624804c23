"""Calculator: the model computes a chain of operations with a tool, and answers with the result. There are no images.

    Start with 7. Then add 5. Then multiply by 3. …

The model calls `calculate` once or several times per turn, and gets each result as a tool message. At the end, it
answers with the last result. If a call cannot be run, its tool message says why.

    reward = 1 if the first number in the last answer is the right result, else 0
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from rollout.environments.base import EnvironmentSettings, Reply, Score, TaskSettings
from rollout.environments.multi_turn import MultiTurnEnvironment, Turn
from rollout.records.messages import Message, ToolCall
from rollout.records.task import Task

OPERATIONS = ("add", "subtract", "multiply")
CALCULATE_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "One operation on two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {
                "operation": {"type": "string", "enum": list(OPERATIONS)},
                "a": {"type": "integer"},
                "b": {"type": "integer"},
            },
            "required": ["operation", "a", "b"],
        },
    },
}
_OPERATION_PHRASES = {"add": "add {}", "subtract": "subtract {}", "multiply": "multiply by {}"}
_NUMBER = re.compile(r"-?\d+")


class CalculatorSettings(EnvironmentSettings):
    """The keys of the section `environment`: how many turns a rollout may take."""

    max_turns: int = Field(default=16, ge=1)
    """The limit for answers; without a result, the reward is 0."""


class CalculatorTasks(TaskSettings):
    """The keys of the section `tasks`: how long the chain of operations is."""

    operations: int = Field(default=3, ge=1)
    """The number of operations in a task."""


class Calculator(MultiTurnEnvironment):
    """Runs the calls of its only tool, and scores the first answer without a call."""

    Settings: ClassVar[type[EnvironmentSettings]] = CalculatorSettings
    Tasks: ClassVar[type[TaskSettings]] = CalculatorTasks
    settings: CalculatorSettings
    tools: ClassVar[Sequence[Mapping[str, Any]] | None] = (CALCULATE_TOOL,)

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        """Yield tasks with a first number and a chain of operations, which are computed from the task's seed."""
        assert isinstance(tasks, CalculatorTasks)
        for task in super().tasks(tasks):
            rng = random.Random(task.seed)  # noqa: S311 - reproducible, not secret
            chain = [[rng.choice(OPERATIONS), rng.randint(2, 9)] for _ in range(tasks.operations)]
            yield replace(task, data={"start": rng.randint(2, 20), "chain": chain})

    async def reset(self, task: Task) -> Sequence[Message]:
        """Compute the expected result, and return the question."""
        self._turn_count = self._call_count = self._refused_count = 0
        start, chain = task.data["start"], task.data["chain"]
        self._expected_result = start
        for operation, operand in chain:
            self._expected_result = calculate(operation, self._expected_result, operand)
        steps = " ".join(f"Then {_OPERATION_PHRASES[operation].format(operand)}." for operation, operand in chain)
        return [
            {"role": "system", "content": "You calculate with the tool, one step after another."},
            {"role": "user", "content": f"Start with {start}. {steps} What is the result?"},
        ]

    async def step(self, reply: Reply) -> Turn:
        """Return the results of the calls, or the score if the answer has no calls or is the last one."""
        self._turn_count += 1
        if reply.tool_calls and self._turn_count < self.settings.max_turns:
            return Turn([self._tool_message(call) for call in reply.tool_calls])
        answer_number = _NUMBER.search(reply.text) if not reply.tool_calls else None
        metrics = {"calls": self._call_count, "refused_calls": self._refused_count, "turns": self._turn_count}
        return Turn(
            score=Score(float(answer_number is not None and int(answer_number[0]) == self._expected_result), metrics)
        )

    def _tool_message(self, call: ToolCall) -> Message:
        self._call_count += 1
        try:
            content = str(_run_tool_call(call))
        except ValueError as refusal:
            self._refused_count += 1
            content = f"error: {refusal}"
        return {
            "role": "tool",
            "tool_call_id": call.id,
            "name": call.name or CALCULATE_TOOL["function"]["name"],
            "content": content,
        }


def calculate(operation: str, a: int, b: int) -> int:
    """Return the result of one operation. Raises ValueError for an unknown operation."""
    match operation:
        case "add":
            return a + b
        case "subtract":
            return a - b
        case "multiply":
            return a * b
    raise ValueError(f"unknown operation {operation!r}; use one of {', '.join(OPERATIONS)}")


def _run_tool_call(call: ToolCall) -> int:
    if call.error is not None:
        raise ValueError(f"the call cannot be read ({call.error})")
    if call.name != CALCULATE_TOOL["function"]["name"]:
        raise ValueError(f"there is no tool {call.name!r}")
    operation, a, b = (call.arguments.get(key) for key in ("operation", "a", "b"))
    if not isinstance(operation, str) or type(a) is not int or type(b) is not int:
        raise ValueError("operation must be a string, and a and b must be whole numbers")
    return calculate(operation, a, b)
