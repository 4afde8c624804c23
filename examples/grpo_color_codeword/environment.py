"""A codeword of colours, which a policy must learn to see and to remember.

    along     each turn shows one picture and asks for its colour; the last turn asks for all colours, in order
    at_end    each turn shows one picture; only the answer of the last turn counts

The policy may sample only colours, so that every sampled token is an answer, right or wrong. The metrics `right.0`,
`right.1`, … say which answers were right; the reward is their mean. With `at_end` only the earlier pictures contain the
answers, so a policy that does not get them again cannot score.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
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
"""The side of a picture in pixels. The processor does not resize this size, so that all resizers agree."""
_SHADES, _GRAIN = 30, 12
_COLOR = re.compile("|".join(COLORS))


@cache
def color_ids() -> tuple[int, ...]:
    """Return the id of each colour's token."""
    tokenizer = load_tokenizer(TOKENIZER)
    return tuple(token for color in COLORS for token in tokenizer.encode(color))


class CodewordSettings(EnvironmentSettings):
    """The keys of `environment`."""

    ask: Literal["along", "at_end"] = "along"
    """Whether the answer of each turn counts."""


class CodewordTasks(TaskSettings):
    """The keys of `tasks`."""

    pictures: int = Field(default=3, ge=1)
    """How many pictures a codeword has."""


class LearnedCodeword(Environment):
    """The policy names the colours that it sees, and those that it saw."""

    Settings: ClassVar[type[EnvironmentSettings]] = CodewordSettings
    Tasks: ClassVar[type[TaskSettings]] = CodewordTasks
    settings: CodewordSettings

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        """See `Environment.tasks`."""
        assert isinstance(tasks, CodewordTasks)
        for task in super().tasks(tasks):
            yield replace(task, data={"codeword": draw_codeword(task, tasks.pictures)})

    async def run(self, task: Task, model: Model) -> Score:
        """See `Environment.run`."""
        codeword: list[str] = task.data["codeword"]
        conversation: list[dict[str, Any]] = []
        answers: list[str] = []
        for turn, color in enumerate(codeword):
            picture = {"type": "image", "image": draw(color, seed=(task.seed, turn))}
            conversation.append({"role": "user", "content": [picture]})
            reply = await model.chat(conversation, sampling=_colors(1))
            conversation.append(reply.message)
            answers.append(reply.text)
        conversation.append({"role": "user", "content": "All?"})
        reply = await model.chat(conversation, sampling=_colors(len(codeword)))
        return score_answers(codeword, [*answers, reply.text], ask=self.settings.ask)


def draw_codeword(task: Task, length: int) -> list[str]:
    """Return the colours that a task shows; they are computed from its seed."""
    return random.Random(task.seed).choices(COLORS, k=length)


def score_answers(codeword: Sequence[str], answers: Sequence[str], *, ask: Literal["along", "at_end"]) -> Score:
    """Score the answers of all turns; the last one names all colours."""
    right = [said == shown for said, shown in zip(answers[:-1], codeword, strict=True)]
    recalled = [said == shown for said, shown in zip(_COLOR.findall(answers[-1]), codeword, strict=True)]
    counted = recalled if ask == "at_end" else right + recalled
    return Score(
        reward=sum(counted) / len(counted),
        metrics={f"right.{answer}": float(was) for answer, was in enumerate(counted)},
    )


def draw(color: str, *, seed: tuple[int, int]) -> Image.Image:
    """Draw a shade of a colour, with grain."""
    noise = np.random.default_rng(seed)
    shade = np.array(PALETTE[color]) + noise.integers(-_SHADES, _SHADES, size=3)
    pixels = shade + noise.integers(-_GRAIN, _GRAIN, size=(_SIDE, _SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _colors(count: int) -> Mapping[str, Any]:
    return {"max_tokens": count, "allowed_token_ids": list(color_ids())}
