"""Shows a picture in each turn, and gets one-word answers from an untrained network."""

import random

from pydantic import Field

from renderers_adapter.tokenizer import load_tokenizer
from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.environments.color_codeword import ColorCodewordSettings, draw_square
from rollout.environments.palette import PALETTE
from rollout.records.messages import Message


class PicturesSettings(EnvironmentSettings):
    """Answers are limited to single tokens, so that a random network sometimes names a colour."""

    tokenizer: str = Field(description="Directory of the model's tokenizer.")
    turns: int = Field(default=3, ge=1)


class Pictures(Environment):
    """Rewards the right colour; the tests only check that every rollout ends once."""

    Settings = PicturesSettings
    settings: PicturesSettings

    async def run(self, task: Task, model: Model) -> Score:
        colors = random.Random(task.seed)
        tokenizer = load_tokenizer(self.settings.tokenizer)
        words = [tokenizer.token_id(word) for word in PALETTE]
        messages: list[Message] = []
        right = 0
        for turn in range(self.settings.turns):
            color = colors.choice(list(PALETTE))
            url = draw_square(color, ColorCodewordSettings(image_size=48), seed=f"{task.seed}-{turn}")
            messages.append({"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]})
            reply = await model.chat(messages, sampling={"allowed_token_ids": words, "max_tokens": 1})
            right += reply.text == color
            messages.append(reply.message)
        return Score(right / self.settings.turns)
