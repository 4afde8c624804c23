"""Scripted policies that call tools, for the embedded engine. They read the messages in the prompt of Qwen3-VL."""

import json
from collections.abc import Sequence
from typing import Any

from rollout.serving.policies import AnswerSlot, Pixels

BROKEN_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1\n</tool_call>'


def tool_call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def say(text: str) -> Sequence[AnswerSlot]:
    return [AnswerSlot({text: 0.0})]


class EightCalls:
    """Makes eight calls in its first answer, and then says how many results it sees."""

    CALLS = ("hang", "fail", "look", "add", "add", "add", "add", "add")

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        results, errors = prompt.count("<tool_response>"), prompt.count("\nError:")
        if results:
            return say(f"{results} results, {errors} errors, {len(images)} images")
        calls = (tool_call(name, **({"a": n, "b": 1} if name == "add" else {})) for n, name in enumerate(self.CALLS))
        return say("\n".join(calls))


class BrokenCall:
    """Makes a malformed call beside a good one, then a malformed one alone, and then apologizes."""

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        errors = prompt.count("Error: this call cannot be read")
        if errors == 2:
            return say("sorry")
        return say(BROKEN_CALL if errors else f"{tool_call('add', a=1, b=1)}\n{BROKEN_CALL}")


class CallsForever:
    """Calls the same tool again and again."""

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        return say(tool_call("add", a=1, b=1))
