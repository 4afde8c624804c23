"""A codeword of colours that a policy has to learn to see and to remember; every token of an answer is one colour.

    along     each of T turns shows one picture and asks for its colour; at the end all T are to be recalled, in order
    at_end    the turns show their pictures and any answer will do; only what is recalled at the end counts

The policy may say only colours, so that every sampled token is an answer that is right or wrong. The metrics `right.0`,
`right.1`, … say which were right, in the order of the tokens that count; the reward is their mean. In `at_end` only
the older pictures contain the answers: a policy that loses them cannot score.
"""

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from renderers_adapter.tokenizer import load_tokenizer
from rollout import Environment, EnvironmentSettings, Model, Score, Task, TaskSettings
from rollout.config.model_directory import BUILTIN_MODELS
from rollout.environments.palette import PALETTE

COLORS = ("red", "green", "blue", "yellow")
TOKENIZER = BUILTIN_MODELS["builtin:tiny"]

_SIDE = 32
"""Pixels. The processor leaves this size as it is, so that no two resizers can differ."""
_SHADES, _GRAIN = 30, 12
_COLOR = re.compile("|".join(COLORS))


@cache
def color_ids() -> tuple[int, ...]:
    """The token of each colour."""
    tokenizer = load_tokenizer(TOKENIZER)
    return tuple(token for color in COLORS for token in tokenizer.encode(color))


class CodewordSettings(EnvironmentSettings):
    ask: Literal["along", "at_end"] = Field(default="along", description="When the colours are asked for.")


class CodewordTasks(TaskSettings):
    pictures: int = Field(default=3, ge=1, description="How many pictures a codeword has.")


class LearnedCodeword(Environment):
    Settings: ClassVar[type[EnvironmentSettings]] = CodewordSettings
    Tasks: ClassVar[type[TaskSettings]] = CodewordTasks
    settings: CodewordSettings

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        assert isinstance(tasks, CodewordTasks)
        for task in super().tasks(tasks):
            yield replace(task, data={"codeword": random.Random(task.seed).choices(COLORS, k=tasks.pictures)})

    async def run(self, task: Task, model: Model) -> Score:
        codeword: list[str] = task.data["codeword"]
        conversation: list[dict[str, Any]] = []
        right: list[bool] = []
        for turn, color in enumerate(codeword):
            picture = {"type": "image", "image": draw(color, seed=(task.seed, turn))}
            conversation.append({"role": "user", "content": [picture]})
            reply = await model.chat(conversation, sampling=_colors(1))
            conversation.append(reply.message)
            right.append(reply.text == color)
        conversation.append({"role": "user", "content": "All?"})
        reply = await model.chat(conversation, sampling=_colors(len(codeword)))
        recalled = [said == shown for said, shown in zip(_COLOR.findall(reply.text), codeword, strict=True)]
        counted = recalled if self.settings.ask == "at_end" else right + recalled
        return Score(
            reward=sum(counted) / len(counted),
            metrics={f"right.{answer}": float(was) for answer, was in enumerate(counted)},
        )


def draw(color: str, *, seed: tuple[int, int]) -> Image.Image:
    """A shade of a colour, with grain."""
    noise = np.random.default_rng(seed)
    shade = np.array(PALETTE[color]) + noise.integers(-_SHADES, _SHADES, size=3)
    pixels = shade + noise.integers(-_GRAIN, _GRAIN, size=(_SIDE, _SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _colors(count: int) -> Mapping[str, Any]:
    return {"max_tokens": count, "allowed_token_ids": list(color_ids())}
