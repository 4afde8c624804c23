"""The clients that play through the gateway, and what their model says: one table for all tests.

The turns are the same for every client as far as its tools allow: two calls at once, a picture, two more calls, and an
answer.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tests.needs.agents import coding_clis
from tests.needs.agents.playing import Command, Endpoint

TASK = "What is 1.5 + 2, and what does café mean? Look at the square, too."
ANSWER = "The sum is 3.5, and a café serves coffee."

Call = tuple[str, Mapping[str, Any]]
"""The name of a tool, and the arguments."""


@dataclass(frozen=True)
class Turn:
    """What the model says at one turn.

    Attributes:
        reasoning: its thoughts; may be empty.
        text: its text; may be empty.
        calls: the tools that it calls.
    """

    reasoning: str
    text: str
    calls: Sequence[Call] = ()


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        name: its name in the tests.
        dialect: the dialect that it speaks.
        command: how to start it: from the endpoint, a directory that does not exist yet, and the task.
        turns: what its model says, from that directory.
        keeps_reasoning: whether it sends the reasoning back.
        shows_pictures: whether one of its tools shows a picture.
        prints_answer_last: whether it prints nothing behind the answer.
        auxiliary_requests: how many requests it sends beside those of the conversation, such as one for a title.
    """

    name: str
    dialect: Literal["chat", "responses", "messages"]
    command: Callable[[Endpoint, Path, str], Command]
    turns: Callable[[Path], list[Turn]]
    keeps_reasoning: bool = True
    shows_pictures: bool = True
    prints_answer_last: bool = True
    auxiliary_requests: int = 0


def _turns(first: Call, second: Call, picture: Call) -> list[Turn]:
    return [
        Turn("I need both results.\nSo I call two tools.", "", [first, second]),
        Turn("Now the picture.", "I look at the picture.", [picture]),
        Turn("Once more, to be sure.", "", [first]),
        Turn("", "And the word again.", [second]),
        Turn("I have all that I need.", ANSWER),
    ]


def _turns_of_program(_: Path) -> list[Turn]:
    return _turns(("add", {"b": 2.0, "a": 1.5}), ("lookup", {"word": "café"}), ("look_at", {"name": "square"}))


def _turns_of_codex(_: Path) -> list[Turn]:
    first, second = ("exec_command", {"cmd": "echo 3.5"}), ("exec_command", {"cmd": "echo café"})
    return _turns(first, second, ("view_image", {"path": coding_clis.PICTURE}))


def _turns_of_opencode(home: Path) -> list[Turn]:
    first: Call = ("bash", {"description": "Prints the sum", "command": "echo 3.5"})
    second: Call = ("bash", {"command": "echo café", "description": "Prints a word"})
    return _turns(first, second, ("read", {"filePath": str(home / coding_clis.WORK / coding_clis.PICTURE)}))


def _turns_of_mini_swe_agent(_: Path) -> list[Turn]:
    first: Call = ("bash", {"command": "echo 3.5"})
    turns = _turns(first, ("bash", {"command": "echo café"}), ("bash", {"command": f"wc -c {coding_clis.PICTURE}"}))
    submit: Call = ("bash", {"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"})
    return [*turns[:-1], replace(turns[-1], calls=[submit])]


def _program(module: str, *options: str) -> Callable[[Endpoint, Path, str], Command]:
    def command(endpoint: Endpoint, home: Path, task: str) -> Command:
        home.mkdir()
        name = f"tests.needs.agents.programs.{module}"
        return Command([sys.executable, "-m", name, endpoint.model, task, *options], home, {"HOME": str(home)})

    return command


CLIENTS = [
    Client("openai_chat", "chat", _program("openai_chat"), _turns_of_program),
    Client("openai_chat_async", "chat", _program("openai_chat_async"), _turns_of_program),
    Client("openai_chat_streamed", "chat", _program("openai_chat_streamed"), _turns_of_program),
    Client("openai_responses", "responses", _program("openai_responses"), _turns_of_program),
    Client("openai_responses_streamed", "responses", _program("openai_responses", "stream"), _turns_of_program),
    Client("openai_responses_stored", "responses", _program("openai_responses", "stored"), _turns_of_program),
    Client("anthropic_messages", "messages", _program("anthropic_messages"), _turns_of_program),
    Client("anthropic_messages_streamed", "messages", _program("anthropic_messages", "stream"), _turns_of_program),
    Client("agents_sdk_chat", "chat", _program("agents_sdk", "chat"), _turns_of_program, keeps_reasoning=False),
    Client(
        "agents_sdk_chat_streamed",
        "chat",
        _program("agents_sdk", "chat", "stream"),
        _turns_of_program,
        keeps_reasoning=False,
    ),
    Client("agents_sdk_responses", "responses", _program("agents_sdk", "responses"), _turns_of_program),
    Client(
        "agents_sdk_responses_streamed", "responses", _program("agents_sdk", "responses", "stream"), _turns_of_program
    ),
    Client("langgraph_chat", "chat", _program("langgraph_chat"), _turns_of_program, keeps_reasoning=False),
    Client("pydantic_ai_chat", "chat", _program("pydantic_ai_chat"), _turns_of_program),
    Client("litellm_chat", "chat", _program("litellm_chat"), _turns_of_program),
    Client("codex", "responses", coding_clis.coding_cli("codex", coding_clis.CODEX), _turns_of_codex),
    Client(
        "opencode",
        "chat",
        coding_clis.coding_cli("opencode", coding_clis.OPENCODE),
        _turns_of_opencode,
        auxiliary_requests=1,
    ),
    Client(
        "mini_swe_agent",
        "chat",
        coding_clis.coding_cli("mini-swe-agent", coding_clis.MINI_SWE_AGENT),
        _turns_of_mini_swe_agent,
        prints_answer_last=False,
        shows_pictures=False,
    ),
]
