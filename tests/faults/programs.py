"""An environment that plays a program over the gateway, and a policy that calls a tool in every second answer."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.environments.endpoint import Transcript
from rollout.serving.policies import AnswerSlot, Pixels

PROGRAM = Path(__file__).with_name("agent_program.py")
TURNS = 5


class PlaysAProgramSettings(EnvironmentSettings):
    marker: str = ""
    """An argument for the program, so that a test finds programs that are left."""


class PlaysAProgram(Environment):
    """Plays one program to its end. The reward is 1 if it prints the policy's last answer."""

    Settings = PlaysAProgramSettings
    settings: PlaysAProgramSettings

    async def run(self, task: Task, model: Model) -> Score:
        async with model.endpoint() as endpoint:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(PROGRAM), self.settings.marker, task.id, str(TURNS)),
                env={**os.environ, **endpoint.environ},
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await process.communicate()
        assert process.returncode == 0, output
        return Score(float(output.decode().strip() == endpoint.transcript.text == f"answer {TURNS}"))


def says_the_last_answer(task: Task, work: Path, transcript: Transcript, exit_code: int) -> float:
    """Return 1 if the last answer is the one that the policy says last."""
    return float(transcript.text == f"answer {TURNS}")


def played_a_turn(task: Task, work: Path, transcript: Transcript, exit_code: int) -> float:
    """Return 1 if the program played a turn."""
    return float(len(transcript.turns) == 1)


class CallsInTurns:
    """Calls a tool in its first, third, … answer, and says the number of the answer in all of them."""

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        number = prompt.count("<|im_start|>assistant\n")
        call = json.dumps({"name": "add", "arguments": {"a": number, "b": 2}})
        calls = f"\n<tool_call>\n{call}\n</tool_call>" if number % 2 == 1 and number < TURNS else ""
        return [AnswerSlot({f"answer {number}{calls}": 0.0})]
