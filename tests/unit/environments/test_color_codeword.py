"""The colour codeword environment: its tasks, pictures and score."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from rollout import FinishReason, Model, Reply, Task
from rollout.environments.color_codeword import ColorCodeword, ColorCodewordSettings, ColorCodewordTasks, draw_square
from rollout.environments.palette import PALETTE


@dataclass
class AnsweringModel(Model):
    """A model that answers with a function of (question number, codeword) and keeps its questions."""

    codeword: list[str]
    answer: Callable[[int, list[str]], str]
    asked: list[list[dict[str, Any]]] = field(default_factory=list)

    async def chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> Reply:
        text = self.answer(len(self.asked), self.codeword)
        self.asked.append(list(messages))
        return Reply(message={"role": "assistant", "content": text}, text=text, finish_reason=FinishReason.STOP)


def right(question: int, codeword: list[str]) -> str:
    return codeword[question] if question < len(codeword) else " ".join(codeword)


def environment() -> ColorCodeword:
    return ColorCodeword(ColorCodewordSettings())


def tasks(**keys: Any) -> list[Task]:
    return list(environment().tasks(ColorCodewordTasks(**keys)))


def open_image(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


async def play(
    task: Task, answer: Callable[[int, list[str]], str]
) -> tuple[float, Mapping[str, float], AnsweringModel]:
    model = AnsweringModel(task.data["codeword"], answer)
    score = await environment().run(task, model)
    return score.reward, score.metrics, model


async def test_correct_answers_score_one_and_each_turn_adds_an_image() -> None:
    [task] = tasks(count=1, turns=5, seed=3)
    reward, metrics, model = await play(task, right)
    assert reward == 1.0
    assert metrics == {"turn_accuracy": 1.0, "codeword_accuracy": 1.0}
    images = [str(conversation).count("'type': 'image_url'") for conversation in model.asked]
    assert images == [1, 2, 3, 4, 5, 5]
    assert all(isinstance(conversation[-1]["content"], list) for conversation in model.asked[:-1])
    assert isinstance(model.asked[-1][-1]["content"], str)


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        (lambda question, codeword: codeword[question] if question < 4 else "", 0.5),
        (lambda question, codeword: "" if question < 4 else " ".join(codeword), 0.5),
        (lambda question, codeword: "mauve", 0.0),
        (lambda question, codeword: " ".join(PALETTE) if question < 4 else " ".join(codeword[:3]), 0.375),
        (lambda question, codeword: right(question, codeword) if question in (0, 4) else "", 0.625),
        (lambda question, codeword: f"It is {right(question, codeword)}.".upper(), 1.0),
        (lambda question, codeword: f"{right(question, codeword)} {right(question, codeword)}", 0.5),
    ],
    ids=["turns only", "codeword only", "nothing", "three positions", "one turn", "in a sentence", "said twice"],
)
async def test_turns_and_positions_are_each_half_of_the_score(
    answer: Callable[[int, list[str]], str], reward: float
) -> None:
    [task] = tasks(count=1, turns=4)
    assert (await play(task, answer))[0] == reward


async def test_a_task_shows_the_same_bytes_every_time() -> None:
    first, second = tasks(count=2, turns=3, seed=11)
    shown = [(await play(task, right))[2].asked[-1] for task in (first, first, second)]
    assert shown[0] == shown[1]
    assert shown[0] != shown[2]
    assert tasks(count=2, turns=3, seed=11) == [first, second]
    assert tasks(count=2, turns=3, seed=12) != [first, second]


@settings(max_examples=40, deadline=None)
@given(
    color=st.sampled_from(list(PALETTE)),
    image_format=st.sampled_from(["png", "jpeg"]),
    size=st.integers(32, 256),
    seed=st.text(max_size=8),
)
def test_a_picture_has_one_square_of_its_color_on_grey(
    color: str, image_format: Literal["png", "jpeg"], size: int, seed: str
) -> None:
    uri = draw_square(color, ColorCodewordSettings(image_size=size, image_format=image_format), seed=seed)
    assert uri.startswith(f"data:image/{image_format};base64,")
    image = open_image(uri)
    assert image.format == image_format.upper()
    assert all(size - size // 4 <= side <= size + size // 4 for side in image.size)
    pixels = np.asarray(image.convert("RGB"), dtype=np.int64)
    is_square = np.ptp(pixels, axis=-1) > 80
    side = round(0.4 * min(image.size))
    # JPEG smears chroma over the edge of the square by up to 8 pixels
    assert (side - 16) ** 2 <= is_square.sum() <= (side + 16) ** 2
    mean = pixels[is_square].mean(axis=0)
    distance = {name: np.abs(mean - rgb).sum() for name, rgb in PALETTE.items()}
    assert min(distance, key=lambda name: distance[name]) == color


def test_mixed_pictures_have_both_formats_and_several_sizes() -> None:
    images = [open_image(draw_square("red", ColorCodewordSettings(), seed=str(seed))) for seed in range(16)]
    assert {image.format for image in images} == {"PNG", "JPEG"}
    assert len({image.size for image in images}) > 8


def test_colors_differ_from_each_other_and_from_grey() -> None:
    colors = np.array(list(PALETTE.values()), dtype=np.int64)
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=-1)
    assert distances[~np.eye(len(colors), dtype=bool)].min() >= 100
    assert np.ptp(colors, axis=-1).min() >= 100


@pytest.mark.parametrize(
    "keys", [{"image_size": 8}, {"square_share": 0.0}, {"image_format": "webp"}, {"colour": "red"}]
)
def test_invalid_settings_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ColorCodewordSettings(**keys)
