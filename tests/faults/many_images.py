"""An environment with many rollouts at once: each shows `images` pictures, and waits for its answers."""

import asyncio
from typing import Any

from pydantic import Field

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.environments.color_codeword import ColorCodewordSettings, draw_square
from rollout.environments.palette import PALETTE

_DRAWN = 256
"""Different pictures; what a rollout holds is the same as if all were."""


class ManyImagesSettings(EnvironmentSettings):
    images: int = Field(default=32, ge=0)
    waits: float = Field(default=0.0, description="Seconds that a rollout waits for something else than the engine.")


class ManyImages(Environment):
    Settings = ManyImagesSettings
    settings: ManyImagesSettings

    async def run(self, task: Task, model: Model) -> Score:
        await asyncio.sleep(self.settings.waits)
        if not self.settings.images:
            return Score(1.0)
        content: list[dict[str, Any]] = [{"type": "text", "text": "Which colours are these?"}]
        for number in range(self.settings.images):
            picture = (task.index * self.settings.images + number) % _DRAWN
            color = list(PALETTE)[picture % len(PALETTE)]
            uri = draw_square(color, ColorCodewordSettings(image_size=32), seed=str(picture))
            content.append({"type": "image_url", "image_url": {"url": uri}})
        conversation: list[dict[str, Any]] = [{"role": "user", "content": content}]
        reply = await model.chat(conversation)
        conversation += [reply.message, {"role": "user", "content": "And the last one?"}]
        await model.chat(conversation)
        return Score(1.0)
