"""An environment that scores one answer, or does what its settings say instead of ending."""

import asyncio
import contextlib
import time
from typing import ClassVar, Literal

import anyio.to_thread
from pydantic import Field

from rollout import Environment, EnvironmentSettings, Model, Score, Task


class NeverEndsSettings(EnvironmentSettings):
    does: Literal["scores", "stays", "starts_a_task", "hangs_in_a_thread", "holds"] = Field(
        default="scores", description="What it does."
    )


class NeverEnds(Environment):
    Settings = NeverEndsSettings
    settings: NeverEndsSettings
    tasks_left: ClassVar[list["asyncio.Task[None]"]] = []

    async def run(self, task: Task, model: Model) -> Score:
        await model.chat([{"role": "user", "content": "Heads or tails?"}])
        if self.settings.does == "stays":
            await stay()
        if self.settings.does == "starts_a_task":
            self.tasks_left.append(asyncio.create_task(stay()))
        if self.settings.does == "hangs_in_a_thread":
            await anyio.to_thread.run_sync(time.sleep, 3600, abandon_on_cancel=True)
        if self.settings.does == "holds":
            time.sleep(3600)  # noqa: ASYNC251 - that is the point
        return Score(1.0)


async def stay() -> None:
    """Never return; every cancellation is caught."""
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
