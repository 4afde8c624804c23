"""The scripted policies: how they read images, what they answer, and how they are found by name."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rollout.environments.color_codeword import ColorCodewordSettings, draw_square
from rollout.environments.palette import PALETTE
from rollout.images.pixels import load_pixels
from rollout.images.sources import decode_data_uri
from rollout.serving.policies import AnswerSlot, ColorPolicy, Pixels, PolicyNotFound, load_policy, nearest_color

IMAGE_TURN = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>?<|im_end|>\n"
ANSWERED = "<|im_start|>assistant\nred<|im_end|>\n"


def filled(color: str) -> Pixels:
    return np.full((64, 64, 3), PALETTE[color], dtype=np.uint8)


def best(slots: list[AnswerSlot]) -> list[str]:
    return [max(slot.logits, key=lambda text: slot.logits[text]) for slot in slots]


@settings(max_examples=60, deadline=None)
@given(
    color=st.sampled_from(list(PALETTE)),
    image_size=st.sampled_from([32, 64, 128, 500]),
    square_share=st.floats(0.25, 1.0),
    scale=st.floats(0.5, 2.5),
    seed=st.integers(0, 1000),
)
def test_a_color_survives_noise_jpeg_and_resizing(
    color: str, image_size: int, square_share: float, scale: float, seed: int
) -> None:
    shown = ColorCodewordSettings(image_size=image_size, square_share=square_share)
    image = load_pixels(decode_data_uri(draw_square(color, shown, seed=str(seed)), 10_000_000))
    size = (max(28, round(image.width * scale)), max(28, round(image.height * scale)))
    assert nearest_color(np.asarray(image.resize(size, Image.Resampling.BICUBIC))) == color


def test_the_color_of_a_grey_image_is_a_guess() -> None:
    grey: Pixels = np.full((64, 64, 3), 120, dtype=np.uint8)
    assert nearest_color(grey) is None
    [slot] = ColorPolicy().answer(IMAGE_TURN, [grey])
    assert set(slot.logits.values()) == {0.0}


def test_the_images_of_the_last_user_turn_are_named() -> None:
    prompt = IMAGE_TURN + ANSWERED + IMAGE_TURN
    assert best(list(ColorPolicy().answer(prompt, [filled("red"), filled("blue")]))) == ["blue"]


def test_without_an_image_in_the_last_turn_all_images_are_named() -> None:
    prompt = IMAGE_TURN + ANSWERED + IMAGE_TURN + ANSWERED + "<|im_start|>user\nAll?<|im_end|>\n"
    assert best(list(ColorPolicy().answer(prompt, [filled("red"), filled("blue")]))) == ["red", " blue"]


def test_without_any_image_the_answer_says_so() -> None:
    assert best(list(ColorPolicy().answer("<|im_start|>user\nHi<|im_end|>\n", []))) == ["I see no picture."]


@pytest.mark.parametrize(("temperature", "right"), [(1.0, 0.9), (0.5, 0.99824), (2.0, 0.53137)])
def test_the_error_rate_is_the_documented_one(temperature: float, right: float) -> None:
    [slot] = ColorPolicy().answer(IMAGE_TURN, [filled("cyan")])
    weights = {text: math.exp(margin / temperature) for text, margin in slot.logits.items()}
    others = len(PALETTE) - 1
    assert weights["cyan"] / sum(weights.values()) == pytest.approx(right, abs=1e-5)
    assert right == pytest.approx(1 / (1 + others * (9 * others) ** (-1 / temperature)), abs=1e-5)


def test_a_policy_comes_from_any_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other_policy.py").write_text(
        "from rollout.serving.policies import AnswerSlot\n"
        "class Coin:\n"
        "    def answer(self, prompt, images):\n"
        "        return [AnswerSlot({'heads': 0.0, 'tails': 0.0})]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_policy("other_policy:Coin").answer("", []) == [AnswerSlot({"heads": 0.0, "tails": 0.0})]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("ColorPolicy", "has no colon"),
        ("no_such_module:Policy", "No module named 'no_such_module'"),
        ("rollout.serving.policies:NoSuchPolicy", "has no attribute 'NoSuchPolicy'"),
        ("rollout.serving.policies:AnswerSlot", "missing 1 required positional argument"),
        ("builtins:dict", "no method answer"),
    ],
)
def test_a_name_that_is_not_of_a_policy_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(PolicyNotFound, match=complaint) as caught:
        load_policy(name)
    assert name in str(caught.value)
