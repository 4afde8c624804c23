"""An agent program plays as an environment, in a process of its own.

`agent.py` is a program that knows nothing of rollout. It gets a directory with pictures, a question, and the variables
in `endpoint.environ`. It looks at two pictures at once and then answers. All of its turns train.

    rollout run examples/agents/agents.yaml
"""

import asyncio
import base64
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from rollout import Environment, EnvironmentSettings, Model, Score, Task, TaskSettings
from rollout.environments.color_codeword import (
    ColorCodewordSettings,
    draw_codeword,
    draw_square,
    fraction_correct,
    named_colors,
)

AGENT = Path(__file__).with_name("agent.py")
QUESTION = "Which colours have the pictures, in the order of their names?"


class AgentsSettings(EnvironmentSettings):
    """The keys of `environment`."""

    timeout: float = Field(default=300.0, gt=0)
    """How many seconds the program may run."""
    look: ColorCodewordSettings = ColorCodewordSettings(image_size=64)
    """The pictures."""


class AgentsTasks(TaskSettings):
    """The keys of `tasks`."""

    pictures: int = Field(default=2, ge=1, le=9)
    """How many pictures a task has."""


class Agents(Environment):
    """Runs the program, and scores the last answer that it got."""

    Settings: ClassVar[type[EnvironmentSettings]] = AgentsSettings
    Tasks: ClassVar[type[TaskSettings]] = AgentsTasks
    settings: AgentsSettings

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        """See `Environment.tasks`."""
        assert isinstance(tasks, AgentsTasks)
        for task in super().tasks(tasks):
            yield replace(task, data={"colors": draw_codeword(task, tasks.pictures)})

    async def run(self, task: Task, model: Model) -> Score:
        """See `Environment.run`."""
        with tempfile.TemporaryDirectory() as directory:
            self.write_pictures(task, Path(directory))
            async with model.endpoint() as endpoint:
                code = await self.run_program([directory, QUESTION], endpoint.environ)
        named = named_colors(endpoint.transcript.text)
        metrics = {"turns": len(endpoint.transcript.turns), "failed_programs": float(code != 0)}
        return Score(fraction_correct(named, task.data["colors"]), metrics)

    def write_pictures(self, task: Task, directory: Path) -> None:
        """Write the pictures of a task as 1.png, 2.png and so on."""
        for number, color in enumerate(task.data["colors"], start=1):
            uri = draw_square(color, self.settings.look, seed=f"{task.seed}/{number}")
            (directory / f"{number}.png").write_bytes(base64.b64decode(uri.partition(",")[2]))

    async def run_program(self, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
        """Run the program, and return its exit code. It is killed if the rollout ends first, or after `timeout`."""
        # The program gets no other variables, because those of this process may name another provider.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(AGENT),
            *arguments,
            env={"PATH": os.environ["PATH"], **environ},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            return await asyncio.wait_for(process.wait(), self.settings.timeout)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
