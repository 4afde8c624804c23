"""An environment whose policy makes eight tool calls in one answer: one hangs, one raises, one exits."""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from PIL import Image

from rollout import Reply, Score, Task, Tool, ToolEnvironment, tool
from rollout.records.messages import Message
from rollout.serving.policies import AnswerSlot, Pixels


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class ToolCalls(ToolEnvironment):
    """Tools that misbehave, next to tools that behave well."""

    functions: ClassVar[Sequence[Tool[..., Any]]] = (add,)

    async def reset(self, task: Task) -> Sequence[Message]:
        return [{"role": "user", "content": f"Work. {task.id}"}]

    @tool(timeout=1)
    def hang(self) -> None:
        """Hang in a thread."""
        time.sleep(3600)

    @tool
    async def fail(self) -> None:
        """Fail."""
        raise ValueError("not today")

    @tool
    def leave(self) -> None:
        """Try to end the process."""
        sys.exit(3)

    @tool
    def look(self) -> list[Any]:
        """Look at the desk."""
        return ["the desk:", Image.new("RGB", (64, 64), "red")]

    async def score(self, reply: Reply) -> Score:
        return Score(float(reply.text == "8 results, 3 errors, 1 images"))


class EightCalls:
    """Makes eight calls in its first answer, and then answers with the number of results that it sees."""

    CALLS = ("hang", "fail", "leave", "look", "add", "add", "add", "add")

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        results, errors = prompt.count("<tool_response>"), prompt.count("\nError:")
        if results:
            return [AnswerSlot({f"{results} results, {errors} errors, {len(images)} images": 0.0})]
        calls = ({"name": name, "arguments": {"a": 1, "b": 2} if name == "add" else {}} for name in self.CALLS)
        return [AnswerSlot({"\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls): 0.0})]
