"""The scripted policy: it answers any program, and knows nothing of it but its prompt and its tools.

A conversation with tools gets two calls at once, then one call without a text, then a final text. A program that does
not stop then is asked to end in the way that its tools or its prompt name.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.doctor.agent.text_actions import block_language, command_block, ending_command
from rollout.doctor.agent.tool_arguments import make_arguments
from rollout.doctor.agent.tool_choice import choose_tools, command_key, ending_tool
from rollout.gateway.dialects.normal_form import content_text
from rollout.records.messages import Message

MARK = "doctor-step-"
"""Each text and each thought has this mark and a number, so that it is found again in requests."""
_CALLING_TURNS = 12
"""After this number of turns, no more tools are called, so that a program that forgets its history ends, too."""


@dataclass(frozen=True, slots=True)
class ScriptedAnswer:
    """An answer of the script.

    Attributes:
        text: its text; may be empty.
        reasoning: the reasoning before it; may be empty.
        calls: the tool calls as (name, arguments).
        ends_task: whether the policy has nothing more to do, so that a program should end.
    """

    text: str
    reasoning: str = ""
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    ends_task: bool = False


class AgentScript:
    """Answers the requests of one play.

    Attributes:
        calls_made: the names of the tools that were called, in order.
        call_ids: the ids of these calls; the session that plays the turns adds them.
        answers_after_end: the number of answers after the first one with which the task ends; None before it.
    """

    def __init__(self) -> None:
        self.calls_made: list[str] = []
        self.call_ids: set[str] = set()
        self.answers_after_end: int | None = None
        self._answers = 0

    def answer(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> ScriptedAnswer:
        """Return the answer to a conversation."""
        number = self._answers
        self._answers += 1
        stage = sum(1 for message in messages if message["role"] == "assistant" and self._is_own(message))
        tired = number >= _CALLING_TURNS
        answer = self._with_tools(stage, number, messages, tools, tired) if tools else _as_text(stage, number, messages)
        self.calls_made += [name for name, _ in answer.calls]
        if self.answers_after_end is not None:
            self.answers_after_end += 1
        elif answer.ends_task and (tools or stage):
            self.answers_after_end = 0
        return answer

    def _with_tools(
        self,
        stage: int,
        number: int,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        tired: bool,
    ) -> ScriptedAnswer:
        first, second = choose_tools(tools)
        if stage == 0 and not tired:
            calls = (_call(first, 1), _call(second, 2))
            return ScriptedAnswer(
                f"I use two tools at once. ({MARK}{number})", f"Two results help.\nSo I ask. ({MARK}{number}r)", calls
            )
        if stage == 1 and not tired:
            return ScriptedAnswer("", f"One more result is missing. ({MARK}{number}r)", (_call(first, 3),))
        final = f"The check is done: café. ({MARK}{number})"
        if stage > 2 or tired:
            command = ending_command(_prompt_text(messages))
            shell = next((tool for tool in tools if command_key(tool)), None)
            if command is not None and shell is not None:
                name = str(shell["function"]["name"])
                return ScriptedAnswer(final, "", ((name, make_arguments(shell, 4, command)),), ends_task=True)
            if (ending := ending_tool(tools)) is not None:
                return ScriptedAnswer(final, "", (_call(ending, 4),), ends_task=True)
        return ScriptedAnswer(final, f"I have all that I need. ({MARK}{number}r)", ends_task=True)

    def _is_own(self, message: Message) -> bool:
        if any(call.get("id") in self.call_ids for call in message.get("tool_calls") or ()):
            return True
        return MARK in json.dumps([message.get("content"), message.get("reasoning_content")])


def _as_text(stage: int, number: int, messages: Sequence[Message]) -> ScriptedAnswer:
    prompt = _prompt_text(messages)
    language, text = block_language(prompt), f"The check is done: café. ({MARK}{number})"
    reasoning = f"I think about it. ({MARK}{number}r)"
    if language is None:
        return ScriptedAnswer(text, reasoning, ends_task=True)
    if stage <= 1:
        block = command_block(language, f"echo café-{stage}")
        return ScriptedAnswer(f"I look first. ({MARK}{number})\n\n{block}", reasoning)
    ending = ending_command(prompt)
    ended = text if ending is None else f"{text}\n\n{command_block(language, ending)}"
    return ScriptedAnswer(ended, reasoning, ends_task=True)


def _call(tool: Mapping[str, Any], number: int) -> tuple[str, Mapping[str, Any]]:
    return str(tool["function"]["name"]), make_arguments(tool, number)


def _prompt_text(messages: Sequence[Message]) -> str:
    """Return the text of what the program itself wrote."""
    return "\n".join(
        content_text(message.get("content")) for message in messages if message["role"] in ("system", "user")
    )
