"""Compaction: a long conversation whose history is replaced by summaries.

Each turn shows one picture, as in the colour codeword. After every `keep` pictures, a summary in words replaces the
history, and the conversation continues from there. At the end all pictures are shown again.

The example shows that `model.chat` takes any conversation, so that cutting the list is enough. Branches share the
prefix that stays the same, a picture that returns is sent again, and every answer trains exactly once.

    rollout run examples/compaction/compaction.yaml
"""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from rollout import Environment, EnvironmentSettings, Model, Score, Task, TaskSettings
from rollout.environments.color_codeword import (
    ColorCodewordSettings,
    draw_codeword,
    draw_square,
    fraction_correct,
    named_colors,
)
from rollout.environments.palette import PALETTE

SYSTEM = {"role": "system", "content": f"You look at squares. Name colours only, of these: {', '.join(PALETTE)}."}


class CompactionSettings(EnvironmentSettings):
    """The keys of `environment`."""

    keep: int = Field(default=3, ge=1)
    """After how many pictures the history is replaced by a summary."""
    look: ColorCodewordSettings = ColorCodewordSettings(image_size=64)
    """The pictures."""


class CompactionTasks(TaskSettings):
    """The keys of `tasks`."""

    pictures: int = Field(default=8, ge=1)
    """How many pictures a rollout has."""


class Compaction(Environment):
    """The policy names the colours of more pictures than its history keeps."""

    Settings: ClassVar[type[EnvironmentSettings]] = CompactionSettings
    Tasks: ClassVar[type[TaskSettings]] = CompactionTasks
    settings: CompactionSettings

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        """See `Environment.tasks`."""
        assert isinstance(tasks, CompactionTasks)
        for task in super().tasks(tasks):
            yield replace(task, data={"colors": draw_codeword(task, tasks.pictures)})

    async def run(self, task: Task, model: Model) -> Score:
        """See `Environment.run`."""
        colors: list[str] = task.data["colors"]
        pictures = [await asyncio.to_thread(self.picture, task, number) for number in range(len(colors))]
        conversation: list[dict[str, Any]] = [SYSTEM]
        named_so_far: list[str] = []
        for number, picture in enumerate(pictures):
            if number and number % self.settings.keep == 0:
                conversation = [SYSTEM, {"role": "user", "content": f"So far you saw: {', '.join(named_so_far)}."}]
            conversation.append({"role": "user", "content": [picture, {"type": "text", "text": "Which colour?"}]})
            reply = await model.chat(conversation)
            conversation.append(reply.message)
            named_so_far += named_colors(reply.text)[:1] or ["nothing"]

        closing_content = [*pictures, {"type": "text", "text": "Here they are once more. Name them all."}]
        reply = await model.chat([*conversation, {"role": "user", "content": closing_content}])
        at_once, at_last = fraction_correct(named_so_far, colors), fraction_correct(named_colors(reply.text), colors)
        return Score(0.5 * at_once + 0.5 * at_last, {"at_once": at_once, "at_last": at_last})

    def picture(self, task: Task, number: int) -> dict[str, Any]:
        """Draw the picture with this number, as a part of a message."""
        uri = draw_square(task.data["colors"][number], self.settings.look, seed=f"{task.seed}/{number}")
        return {"type": "image_url", "image_url": {"url": uri}}
