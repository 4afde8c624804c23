"""Plays a conversation with two images, and reads its record as a trainer does.

All parts are those of a run: the environment, the attempt, the session, the engine's client, and the trainer's reader.
"""

import asyncio
import secrets
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from renderers_adapter.pool import RendererPool
from rollout.doctor.engines.under_test import CheckFailed, CheckNotMade, EngineUnderTest
from rollout.environments.base import Environment, EnvironmentSettings, Model, Score
from rollout.images import ImagePolicy
from rollout.records.messages import Message
from rollout.records.task import Task
from rollout.session.policy import PolicyClient, PolicyVersionState
from rollout.tasks.orders import RolloutOrder
from rollout.trainer import TrainingSample, TrajectoryReader, check, samples
from rollout.worker.attempt import Attempt
from rollout.worker.setup import build_run_metadata
from transports import open_queue

_SAMPLING = {"temperature": 1.0, "max_tokens": 32}
_MIN_TOKENS = 16
"""With fewer tokens, equal log-probs prove little."""
_READ_SECONDS = 30.0
_PICTURE_SIZES = ((333, 250), (250, 410))
"""Width and height of each picture. Processors must resize both, so that another resize backend shows."""
_SHAPES = 6
_TEXT_QUESTION = "Tell a short story about two pictures that nobody has seen yet."
_PICTURE_QUESTION = "Describe everything in this picture: the shapes, their places, their colours, and the noise."


@dataclass(frozen=True, slots=True)
class PlayedConversation:
    """The record of the conversation, as a trainer gets it.

    Attributes:
        samples: the training samples; one if every later turn was bridged.
        turns: the number of turns. The first turn shows no image, so its log-probs do not depend on images.
        images: the number of images, each of which is new in its turn.
        versions: the versions of the weights that sampled the answers, as the engine names them.
    """

    samples: tuple[TrainingSample, ...]
    turns: int
    images: int
    versions: tuple[str, ...]

    @property
    def trained_tokens(self) -> int:
        """The number of sampled tokens."""
        return sum(int(sample.mask.sum()) for sample in self.samples)


async def play_conversation(engine: EngineUnderTest, image_policy: ImagePolicy) -> PlayedConversation:
    """Play the conversation with an engine, and return its record. The answers are sampled at temperature 1.

    Raises:
        CheckFailed: the conversation failed, or its record has errors.
        CheckNotMade: the engine ended its answers too early.
        EngineError: the engine cannot be reached, or its answer must not be used for training.
    """
    config = engine.config
    policy = PolicyClient(
        RendererPool(engine.adapter, size=1),
        engine.client,
        image_policy,
        _SAMPLING,
        PolicyVersionState(config.policy.version),
        ban_placeholders=config.engine.ban_placeholders,
    )
    order = RolloutOrder(Task(id="forward", index=0, seed=0, data={}), sample=0, group_size=1)
    has_images = engine.adapter.geometry is not None
    url = f"memory://{uuid.uuid4().hex}"
    async with open_queue(url) as queue, TrajectoryReader(open_queue(url)) as reader:
        attempt = Attempt(order, 1, policy, build_run_metadata(config, "doctor"), queue)
        # A task of its own, because the attempt changes the context in which it is played.
        await asyncio.create_task(
            attempt.play(lambda: _Pictures(EnvironmentSettings(), has_images), timeout=config.worker.rollout_timeout)
        )
        trajectory = await reader.receive(timeout=_READ_SECONDS)
    if trajectory is None:
        raise CheckFailed("the record of the conversation did not reach a trainer's reader")
    if trajectory.error is not None:
        raise CheckFailed(f"the conversation failed: {trajectory.error.get('type')}: {trajectory.error.get('message')}")
    if violations := check(trajectory):
        raise CheckFailed(f"the record of the conversation has an error: {violations[0].where}: {violations[0].detail}")
    played = PlayedConversation(
        samples=tuple(samples(trajectory)),
        turns=len(trajectory.steps),
        images=len(trajectory.images),
        versions=tuple(dict.fromkeys(span.version for step in trajectory.steps for span in step.versions)),
    )
    if played.trained_tokens < _MIN_TOKENS:
        raise CheckNotMade(
            f"the engine ended its {played.turns} answers after only {played.trained_tokens} tokens; at least "
            f"{_MIN_TOKENS} are needed. Run the check again"
        )
    return played


class _Pictures(Environment):
    """Asks without a picture, and then about one new picture in each turn. Without images, it asks twice."""

    def __init__(self, settings: EnvironmentSettings, has_images: bool) -> None:
        super().__init__(settings)
        self._has_images = has_images

    async def run(self, task: Task, model: Model) -> Score:
        # Some templates add a system message by themselves, and refuse a conversation without one.
        messages: list[Message] = [{"role": "system", "content": "You answer in long sentences."}]
        for question in self._questions():
            messages.append({"role": "user", "content": question})
            messages.append((await model.chat(messages)).message)
        return Score(0.0)

    def _questions(self) -> list[Any]:
        if not self._has_images:
            return [_TEXT_QUESTION, "And how does it end?"]
        return [
            _TEXT_QUESTION,
            *(
                [{"type": "image", "image": _draw_picture(size)}, {"type": "text", "text": _PICTURE_QUESTION}]
                for size in _PICTURE_SIZES
            ),
        ]


def _draw_picture(size: tuple[int, int]) -> Image.Image:
    """Return a new picture of coloured shapes under noise, so that no cache contains it."""
    random = np.random.default_rng(secrets.randbits(64))
    picture = Image.new("RGB", size, _random_color(random))
    draw = ImageDraw.Draw(picture)
    for _ in range(_SHAPES):
        x, y = (int(random.integers(0, side)) for side in size)
        half = int(random.integers(15, 80))
        draw_shape = draw.rectangle if random.integers(2) else draw.ellipse
        draw_shape((x - half, y - half, x + half, y + half), fill=_random_color(random))
    pixels = np.asarray(picture, np.int16) + random.integers(-40, 41, (size[1], size[0], 3), np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _random_color(random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = random.integers(0, 256, 3).tolist()
    return red, green, blue
