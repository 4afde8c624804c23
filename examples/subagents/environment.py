"""Sub-agents: several conversations in one rollout, at the same time.

A lead sees all pictures. Then one helper for each picture is asked, all at the same time; each has its own conversation
with only that picture. The lead gets the helpers' answers and looks again. It is asked this several times at once, and
continues from the most frequent answer.

The example shows that turns may run in parallel. Each branch has its own pictures, and the branches of the lead share
their beginning. Every answer of the lead and the helpers trains exactly once, with the reward of the whole rollout.

    rollout run examples/subagents/subagents.yaml
"""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from rollout import Environment, EnvironmentSettings, Model, Reply, Score, Task, TaskSettings
from rollout.environments.color_codeword import (
    ColorCodewordSettings,
    draw_codeword,
    draw_square,
    fraction_correct,
    named_colors,
)
from rollout.environments.palette import PALETTE

LEAD = {"role": "system", "content": f"You lead. Answer with colours only, of these: {', '.join(PALETTE)}."}
HELPER = {"role": "system", "content": f"You help. Answer with one colour, of these: {', '.join(PALETTE)}."}


class SubagentsSettings(EnvironmentSettings):
    """The keys of `environment`."""

    votes: int = Field(default=3, ge=1)
    """How often the lead is asked to look again, at the same time."""
    look: ColorCodewordSettings = ColorCodewordSettings(image_size=64)
    """The pictures."""


class SubagentsTasks(TaskSettings):
    """The keys of `tasks`."""

    pictures: int = Field(default=4, ge=1)
    """How many pictures, and helpers, a rollout has."""


class Subagents(Environment):
    """A lead and its helpers name the colours of pictures."""

    Settings: ClassVar[type[EnvironmentSettings]] = SubagentsSettings
    Tasks: ClassVar[type[TaskSettings]] = SubagentsTasks
    settings: SubagentsSettings

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        """See `Environment.tasks`."""
        assert isinstance(tasks, SubagentsTasks)
        for task in super().tasks(tasks):
            yield replace(task, data={"colors": draw_codeword(task, tasks.pictures)})

    async def run(self, task: Task, model: Model) -> Score:
        """See `Environment.run`."""
        colors: list[str] = task.data["colors"]
        pictures = [self.picture(task, number) for number in range(len(colors))]
        shown = {"role": "user", "content": [*pictures, {"type": "text", "text": "Name them all."}]}
        first = await model.chat([LEAD, shown])

        reports = await asyncio.gather(*(self.ask_helper(model, picture) for picture in pictures))
        report_parts = [{"type": "text", "text": f"Your helpers say: {', '.join(reports)}. "}, *pictures]
        second_question = {
            "role": "user",
            "content": [*report_parts, {"type": "text", "text": "Look again: name them all."}],
        }
        question: list[dict[str, Any]] = [LEAD, shown, first.message, second_question]
        votes: list[Reply] = await asyncio.gather(*(model.chat(list(question)) for _ in range(self.settings.votes)))
        winner, _ = Counter(vote.text for vote in votes).most_common(1)[0]
        elected = next(vote for vote in votes if vote.text == winner)
        closing = {"role": "user", "content": "Name them a last time."}
        last = await model.chat([*question, elected.message, closing])

        helpers = fraction_correct(reports, colors)
        # The last question adds no picture. Its answer names all pictures of the conversation, which has each twice.
        lead = fraction_correct(named_colors(last.text), [*colors, *colors])
        return Score(0.5 * helpers + 0.5 * lead, {"helpers": helpers, "lead": lead})

    async def ask_helper(self, model: Model, picture: dict[str, Any]) -> str:
        """Ask a helper for the colour of one picture."""
        question = {"role": "user", "content": [picture, {"type": "text", "text": "Which colour?"}]}
        reply = await model.chat([HELPER, question])
        return next(iter(named_colors(reply.text)), "nothing")

    def picture(self, task: Task, number: int) -> dict[str, Any]:
        """Draw the picture with this number, as a part of a message."""
        uri = draw_square(task.data["colors"][number], self.settings.look, seed=f"{task.seed}/{number}")
        return {"type": "image_url", "image_url": {"url": uri}}
