"""Conversations of six turns for families that are rendered with their own chat templates.

A talk says for each turn what the policy reads, what it answers, and how the prompt must be made. Answers are texts, so
a test can let a real server sample them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.records.messages import Message

TASK = Task(id="000000", index=0, seed=7)
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Finds a colour; it's <quick> & exact.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
        },
    }
]
SYSTEM: Message = {"role": "system", "content": "Be brief. "}


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy reads in a turn, and what it answers.

    Attributes:
        message: the new message; a tool's result gets the id of the last call.
        answer: the text of the answer.
        source: how the prompt is made.
    """

    message: Message
    answer: str
    source: str


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation of six turns.

    Attributes:
        family: the name of the family.
        opening: the messages before the first turn.
        tools: the tools; None without tools.
        turns: the turns.
    """

    family: str
    opening: tuple[Message, ...]
    tools: list[dict[str, Any]] | None
    turns: tuple[Turn, ...]


def _json_call(word: str) -> str:
    return json.dumps({"name": "look_up", "parameters": {"word": word}})


def _tagged_call(word: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'look_up', 'arguments': {'word': word}})}\n</tool_call>"


def _thinking_call(word: str) -> str:
    return f"<think>\nI look it up.\n</think>\n\n{_tagged_call(word)}"


def _question(text: str) -> Message:
    return {"role": "user", "content": text}


def _result(text: str) -> Message:
    return {"role": "tool", "content": text}


_QUESTIONS = ("What is red?", " And blue? \n", "Green\n\nor  white?", "2024 + 17?", "Is it café?", "Sure?")
_ANSWERS = ("A colour.", "It is deep.", "Both\nof them", "2041", "No, it isn't.", "Yes")


def _plain(family: str, sources: Sequence[str], opening: tuple[Message, ...], *, with_tools: bool = False) -> Talk:
    turns = zip(map(_question, _QUESTIONS), _ANSWERS, sources, strict=True)
    return Talk(family, opening, TOOLS if with_tools else None, tuple(Turn(*turn) for turn in turns))


def _with_calls(family: str, write_call: Callable[[str], str], answers: Sequence[str], sources: Sequence[str]) -> Talk:
    messages = (
        *(_question("What is red?"), _result('{"is": "warm & <bright>"}')),
        *(_question("And blue? \n"), _result("cold\n")),
        *(_question("Green?"), _question("Sure?")),
    )
    said = (write_call("red"), answers[0], write_call("blue"), *answers[1:])
    turns = tuple(Turn(*turn) for turn in zip(messages, said, sources, strict=True))
    return Talk(family, (SYSTEM,), TOOLS, turns)


_BRIDGED = ("first", *["bridge"] * 5)
_SAID = ("A warm one.", "A cold one.", "Between.", "Yes")
_THOUGHT = (
    "<think>\nWarm.\n</think>\n\nA warm one.",
    "<think>\nCold.\n</think>\n\nA cold one.",
    "Between.",
    "Yes",
)

TALKS: Mapping[str, Talk] = {
    "Llama 3.x with calls": _with_calls("Llama 3.x", _json_call, _SAID, _BRIDGED),
    "Llama 3.x without a system message": _plain("Llama 3.x", _BRIDGED, ()),
    # Its tools and its system text move to the last question, so nothing can be bridged.
    "Mistral with tools": _plain("Mistral", ("first", *["earlier_text"] * 5), (SYSTEM,), with_tools=True),
    "Mistral without a system message": _plain("Mistral", _BRIDGED, ()),
    # The reasoning is dropped at each new question.
    "Qwen3 with calls": _with_calls(
        "Qwen3", _thinking_call, _THOUGHT, ("first", "bridge", "thinking", "bridge", "thinking", "bridge")
    ),
    "Gemma 3": _plain("Gemma 3", _BRIDGED, (SYSTEM,)),
    "Gemma 3 without a system message": _plain("Gemma 3", _BRIDGED, ()),
    "Phi-3": _plain("Phi-3", _BRIDGED, (SYSTEM,)),
    "SmolLM2": _plain("SmolLM2", _BRIDGED, (SYSTEM,)),
    "SmolLM2 without a system message": _plain("SmolLM2", _BRIDGED, ()),
    "SmolLM3 with calls": _with_calls("SmolLM3", _tagged_call, _SAID, _BRIDGED),
}


def foreign_conversation(*, with_calls: bool) -> list[Message]:
    """Return a conversation of five answers that no policy gave here, some of them with a call and its result."""
    messages: list[Message] = [dict(SYSTEM)]
    for turn, (question, answer) in enumerate(zip(_QUESTIONS, _ANSWERS, strict=True)):
        messages.append(_question(question))
        if with_calls and turn % 2 == 0:
            call_id = f"call{turn:05}"  # Mistral's template requires nine characters
            # vLLM puts the arguments first, whatever the order in the request; Mistral's template writes this order.
            function = {"arguments": json.dumps({"word": "red"}), "name": "look_up"}
            call = {"id": call_id, "type": "function", "function": function}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "content": f"warm {turn}", "tool_call_id": call_id})
        messages.append({"role": "assistant", "content": answer})
    return messages[:-1]


class TalkEnvironment(Environment):
    """Plays a talk; keeps a copy of the conversation before each answer.

    Args:
        talk: the talk.
        before_turn: is called with the planned answer before each turn.
    """

    def __init__(self, talk: Talk, before_turn: Callable[[str], object] = lambda answer: None) -> None:
        super().__init__(EnvironmentSettings())
        self._talk = talk
        self._before_turn = before_turn
        self.requests: list[list[Message]] = []

    async def run(self, task: Task, model: Model) -> Score:
        messages = [dict(message) for message in self._talk.opening]
        call_id = ""
        for turn in self._talk.turns:
            message = dict(turn.message)
            if message["role"] == "tool":
                message["tool_call_id"] = call_id
            messages.append(message)
            self._before_turn(turn.answer)
            reply = await model.chat(messages, tools=self._talk.tools)
            self.requests.append([dict(message) for message in messages])
            messages.append(reply.message)
            if reply.tool_calls:
                call_id = reply.tool_calls[0].id
        return Score(1.0)


class ForeignAnswers(Environment):
    """Asks for each answer of a conversation, and goes on with the conversation's own answer."""

    def __init__(self, conversation: Sequence[Message], tools: list[dict[str, Any]] | None) -> None:
        super().__init__(EnvironmentSettings())
        self._conversation = conversation
        self._tools = tools
        self.requests: list[list[Message]] = []

    async def run(self, task: Task, model: Model) -> Score:
        for at, message in enumerate(self._conversation):
            if message["role"] in ("user", "tool"):
                self.requests.append([dict(message) for message in self._conversation[: at + 1]])
                await model.chat([dict(message) for message in self.requests[-1]], tools=self._tools)
        return Score(1.0)
