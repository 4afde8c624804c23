"""An environment that plays an agent client, and a policy that says what the table of clients wants."""

import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.serving.policies import AnswerSlot, Pixels
from tests.needs.agents.clients import ANSWER, CLIENTS, TASK, Turn
from tests.needs.agents.playing import play

_ANSWER_START = "<|im_start|>assistant\n"
_HOME = re.compile(r"/[^\s\"'<>]*/client-home")
"""The home that a client gets. Its name is in the prompts of opencode, which wants absolute paths."""


class ClientSettings(EnvironmentSettings):
    """Which client plays."""

    client: str


class PlayClient(Environment):
    """Plays one client in a home of its own. The reward is 1 if it ends well and prints the answer."""

    Settings = ClientSettings
    settings: ClientSettings

    async def run(self, task: Task, model: Model) -> Score:
        """Play the client to its end."""
        client = next(client for client in CLIENTS if client.name == self.settings.client)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            home = Path(directory) / "client-home"
            async with model.endpoint() as endpoint:
                ended = await play(client.command(endpoint, home, TASK), endpoint)
        has_answer = ended.output.endswith(ANSWER) if client.prints_answer_last else ANSWER in ended.output
        if ended.code != 0 or not has_answer:
            raise AssertionError(
                f"{client.name} ended with {ended.code}:\n{ended.output[-2000:]}\n{ended.errors[-4000:]}"
            )
        return Score(reward=1.0, metrics={"turns": len(endpoint.transcript.turns)})


class ClientPolicy:
    """Says the turns of the client that the variable AGENT_CLIENT names, and a title where one is asked for."""

    def __init__(self) -> None:
        self._client = next(client for client in CLIENTS if client.name == os.environ["AGENT_CLIENT"])

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """Return the turn that follows the answers in the prompt."""
        if "Generate a title" in prompt:
            return [AnswerSlot({"A sum": 0.0})]
        home = _HOME.search(prompt)
        turns = self._client.turns(Path(home[0]) if home else Path("/nowhere"))
        return [AnswerSlot({write_turn(turns[prompt.count(_ANSWER_START) - 1]): 0.0})]


def write_turn(turn: Turn) -> str:
    """Return the text that the policy samples for a turn, in the format of the model family qwen3."""
    calls = [
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"
        for name, arguments in turn.calls
    ]
    thoughts = f"<think>\n{turn.reasoning}\n</think>\n\n" if turn.reasoning else ""
    return thoughts + "\n".join(filter(None, [turn.text, *calls]))
