"""An environment with many rollouts at once: each shows `images` pictures.

The rollouts wait until `together` of them are in flight: between their two turns, or at the start without images.
"""

import asyncio
from typing import Any

from pydantic import Field

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.environments.color_codeword import ColorCodewordSettings, draw_square
from rollout.environments.palette import PALETTE

_DISTINCT_PICTURES = 256
"""How many pictures differ; a rollout needs the same memory as if all of them did."""


class ManyImagesSettings(EnvironmentSettings):
    images: int = Field(default=32, ge=0)
    together: int = Field(default=0, description="How many rollouts wait for each other.")
    waits: float = Field(default=0.0, description="Seconds that a rollout waits for something other than the engine.")


class ManyImages(Environment):
    Settings = ManyImagesSettings
    settings: ManyImagesSettings
    arrived_count = 0
    all_there = asyncio.Event()

    async def run(self, task: Task, model: Model) -> Score:
        if not self.settings.images:
            await self.wait_for_others()
            await asyncio.sleep(self.settings.waits)
            return Score(1.0)
        content: list[dict[str, Any]] = [{"type": "text", "text": "Which colours are these?"}]
        for number in range(self.settings.images):
            picture = (task.index * self.settings.images + number) % _DISTINCT_PICTURES
            color = list(PALETTE)[picture % len(PALETTE)]
            uri = draw_square(color, ColorCodewordSettings(image_size=32), seed=str(picture))
            content.append({"type": "image_url", "image_url": {"url": uri}})
        conversation: list[dict[str, Any]] = [{"role": "user", "content": content}]
        reply = await model.chat(conversation)
        await self.wait_for_others()
        conversation += [reply.message, {"role": "user", "content": "And the last one?"}]
        await model.chat(conversation)
        return Score(1.0)

    async def wait_for_others(self) -> None:
        ManyImages.arrived_count += 1
        if self.arrived_count >= self.settings.together:
            self.all_there.set()
        await self.all_there.wait()
