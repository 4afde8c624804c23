"""Colour codeword: the model sees one image per turn, and names the colours of all images at the end.

In each of T turns, the user shows one image, which has a coloured square on grey noise, and asks for the colour of the
square. A last question asks for all T colours in order.

    reward = 0.5 * (share of correct turns) + 0.5 * (share of correct positions in the codeword)

A turn is correct if its answer names the right colour once, and no other colour. Position i of the codeword is correct
if the i-th colour in the last answer is the i-th colour that was shown. The seed of a task determines every byte of its
images.
"""

import asyncio
import base64
import io
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from rollout.environments.base import Environment, EnvironmentSettings, Model, Score, TaskSettings
from rollout.environments.palette import PALETTE
from rollout.records.task import Task

_COLOR_WORD = re.compile(rf"\b(?:{'|'.join(PALETTE)})\b")
_GREY_RANGE = (88, 168)
_COLOR_JITTER = 10
_JPEG_QUALITY = 85


class ColorCodewordSettings(EnvironmentSettings):
    """The keys of the section `environment`: how the images look."""

    image_size: int = Field(default=128, ge=32, le=4096)
    """Mean side of an image in pixels; sides differ by up to a quarter."""
    square_share: float = Field(default=0.4, ge=0.25, le=1)
    """Side of the square as a share of the image's shorter side."""
    image_format: Literal["png", "jpeg", "mixed"] = "mixed"
    """How images are encoded; with `mixed`, each image is PNG or JPEG at random."""


class ColorCodewordTasks(TaskSettings):
    """The keys of the section `tasks`: how long the codeword is."""

    turns: int = Field(default=4, ge=1)
    """The number of images per rollout and of colours in the codeword."""


class ColorCodeword(Environment):
    """Shows one image per turn, then asks for the colours of all images."""

    Settings: ClassVar[type[EnvironmentSettings]] = ColorCodewordSettings
    Tasks: ClassVar[type[TaskSettings]] = ColorCodewordTasks
    settings: ColorCodewordSettings

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        """Yield tasks, each with a codeword that is computed from the task's seed."""
        assert isinstance(tasks, ColorCodewordTasks)
        for task in super().tasks(tasks):
            yield replace(task, data={"codeword": draw_codeword(task, tasks.turns)})

    async def run(self, task: Task, model: Model) -> Score:
        """Ask about each image, then about the whole codeword, and return the score of the answers."""
        codeword: list[str] = task.data["codeword"]
        conversation: list[dict[str, Any]] = [
            {
                "role": "system",
                "content": "You look at pictures that show one square each, on grey noise. "
                f"The colours are {', '.join(PALETTE)}. Answer with colours only.",
            }
        ]
        correct_turns = 0
        for turn, color in enumerate(codeword):
            image = await asyncio.to_thread(draw_square, color, self.settings, seed=f"{task.seed}/{turn}")
            conversation.append(
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": image}},
                        {"type": "text", "text": "What is the colour of this square?"},
                    ],
                }
            )
            reply = await model.chat(conversation)
            conversation.append(reply.message)
            correct_turns += named_colors(reply.text) == [color]
        conversation.append({"role": "user", "content": "Name the colours of all squares, from the first to the last."})
        reply = await model.chat(conversation)
        turn_accuracy = correct_turns / len(codeword)
        codeword_accuracy = fraction_correct(named_colors(reply.text), codeword)
        return Score(
            reward=0.5 * turn_accuracy + 0.5 * codeword_accuracy,
            metrics={"turn_accuracy": turn_accuracy, "codeword_accuracy": codeword_accuracy},
        )


def draw_codeword(task: Task, length: int) -> list[str]:
    """Return the colours that a task shows; they are computed from its seed."""
    return random.Random(task.seed).choices(list(PALETTE), k=length)  # noqa: S311 - reproducible, not secret


def draw_square(color: str, settings: ColorCodewordSettings, *, seed: str) -> str:
    """Return an image of a coloured square at a random place on grey noise, as a base64 `data:` URI."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    noise_rng = np.random.default_rng(rng.getrandbits(64))
    min_side, max_side = settings.image_size - settings.image_size // 4, settings.image_size + settings.image_size // 4
    width, height = rng.randint(min_side, max_side), rng.randint(min_side, max_side)
    square_side = round(settings.square_share * min(width, height))
    left, top = rng.randint(0, width - square_side), rng.randint(0, height - square_side)

    pixels = np.empty((height, width, 3), dtype=np.int16)
    pixels[:] = noise_rng.integers(*_GREY_RANGE, size=(height, width, 1), dtype=np.int16)
    square = pixels[top : top + square_side, left : left + square_side]
    square[:] = PALETTE[color] + noise_rng.integers(-_COLOR_JITTER, _COLOR_JITTER, size=square.shape, dtype=np.int16)

    image_format = rng.choice(("png", "jpeg")) if settings.image_format == "mixed" else settings.image_format
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
        buffer, format=image_format, quality=_JPEG_QUALITY, compress_level=1
    )
    return f"data:image/{image_format};base64,{base64.b64encode(buffer.getbuffer()).decode('ascii')}"


def named_colors(answer: str) -> list[str]:
    """Return the colours that an answer names, in order and with repetitions."""
    return _COLOR_WORD.findall(answer.lower())


def fraction_correct(named: Sequence[str], shown: Sequence[str]) -> float:
    """Return the share of positions at which the named colour is the colour that was shown."""
    return sum(named_color == shown_color for named_color, shown_color in zip(named, shown, strict=False)) / len(shown)
