"""Our trainer takes the same steps as TRL's own trainer, when both have the same rows."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.needs.trl.world import OurTrainer, StockTrainer, rows_of, step_of, steps_of, train_ours, train_stock

CLOSE = 1e-5
IN_ONE: dict[str, Any] = {}
WITH_PADDING: dict[str, Any] = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2}
"""Three micro-batches of two rows; the last one has only padding."""
IN_CHUNKS: dict[str, Any] = {"per_device_train_batch_size": 2}
"""Two micro-batches of two rows, although TRL's loop has one."""


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("images", [False, True], ids=["text", "images"])
def test_losses_and_gradients_are_those_of_trl(checkpoint: Path, tmp_path: Path, images: bool, loss_type: str) -> None:
    stock = train_stock(checkpoint, tmp_path, images=images, loss_type=loss_type)
    for division in (IN_ONE, WITH_PADDING, IN_CHUNKS):
        assert_equal_steps(train_ours(checkpoint, tmp_path, steps_of(stock), loss_type=loss_type, **division), stock)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "sapo", "luspo", "cispo"])
def test_each_token_may_have_an_advantage_of_its_own(checkpoint: Path, tmp_path: Path, loss_type: str) -> None:
    stock = train_stock(checkpoint, tmp_path, images=False, by_token=True, loss_type=loss_type)
    assert_equal_steps(train_ours(checkpoint, tmp_path, steps_of(stock), loss_type=loss_type, **WITH_PADDING), stock)


@pytest.mark.parametrize("mode", ["sequence_mask", "sequence_truncate", "token_mask", "token_truncate"])
def test_the_correction_is_that_of_trl(checkpoint: Path, tmp_path: Path, mode: str) -> None:
    settings: dict[str, Any] = {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 0.5}
    stock = train_stock(checkpoint, tmp_path, images=True, corrected=True, **settings)
    ours = train_ours(checkpoint, tmp_path, steps_of(stock), correction=True, **settings, **WITH_PADDING)
    assert_equal_steps(ours, stock)
    for name in ("sampling_logp_difference/max", "importance_sampling_ratio/min", "importance_sampling_ratio/max"):
        assert logged(ours, f"sampling/{name}") == pytest.approx(logged(stock, f"sampling/{name}"), abs=CLOSE)


def test_the_kl_term_is_that_of_trl(checkpoint: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"beta": 0.1, "loss_type": "grpo", "learning_rate": 0.5}
    stock = train_stock(checkpoint, tmp_path, images=True, **settings)
    ours = train_ours(checkpoint, tmp_path, steps_of(stock), **settings, **WITH_PADDING)
    assert_equal_steps(ours, stock)
    assert logged(ours, "kl")[-1] > 1e-4


def test_rows_with_and_without_images_may_share_a_step(checkpoint: Path, tmp_path: Path) -> None:
    with_images = train_stock(checkpoint, tmp_path, images=True)
    without_images = train_stock(checkpoint, tmp_path, images=False)
    steps = [
        step_of([*rows_of(some)[:2], *rows_of(others)[2:]])
        for some, others in zip(with_images.generated, without_images.generated, strict=True)
    ]
    together, apart = (train_ours(checkpoint, tmp_path, steps, **division) for division in (IN_ONE, WITH_PADDING))
    assert_equal_steps(apart, together)


def assert_equal_steps(ours: OurTrainer, stock: StockTrainer | OurTrainer) -> None:
    assert logged(ours, "loss") == pytest.approx(logged(stock, "loss"), abs=CLOSE)
    assert len(ours.gradients) == len(stock.gradients) == 3
    for own, expected in zip(ours.gradients, stock.gradients, strict=True):
        assert max(float(gradient.abs().max()) for gradient in expected.values()) > 100 * CLOSE
        for name in own.keys() | expected.keys():
            # Without images in a micro-batch, the vision tower has no gradient at all.
            first = own.get(name, torch.zeros(()))
            torch.testing.assert_close(first, expected.get(name, torch.zeros_like(first)), rtol=0, atol=CLOSE)


def logged(trainer: Any, name: str) -> list[float]:
    """Return the numbers that a trainer logged after each step."""
    return [line[name] for line in trainer.state.log_history if "loss" in line]
