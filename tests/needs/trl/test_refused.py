"""Settings and versions that do not fit are refused, with what to do."""

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

import rollout.trainer.trl
from rollout.errors import ConfigurationError
from rollout.trainer import RankStep
from rollout.trainer.trl import RolloutGRPOTrainer, UnsupportedConfig, installed
from rollout.trainer.trl.rows import step_rows
from tests.needs.trl.world import FixedBatches, config, rows_of, step_of, train_stock


def refused(checkpoint: Path, directory: Path, *, batches: Any = None, named: Any = None, **settings: Any) -> str:
    """Return the text of the error."""
    fixed: Any = FixedBatches([])
    with pytest.raises(UnsupportedConfig) as caught:
        RolloutGRPOTrainer(
            str(checkpoint), batches or fixed, args=config(directory, **settings), **({} if named is None else named)
        )
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_steps": -1}, "max_steps=-1) does not fit. The queue has no length"),
        ({"num_iterations": 2}, "num_iterations=2) does not fit. Each group trains once"),
        ({"loss_type": "bnpo"}, "loss_type='bnpo') does not fit"),
        ({"use_vllm": True, "vllm_mode": "colocate"}, "use_vllm=True) does not fit. The engines of the launch sample"),
        ({"entropy_coef": 0.1}, "entropy_coef=0.1) does not fit"),
        ({"mask_truncated_completions": True}, "Use ReaderSettings(untrained_limits=…)"),
        ({"log_completions": True}, "`rollout inspect` shows the rollouts"),
        ({"eval_strategy": "steps", "eval_steps": 2}, "Call rollout.trainer.evaluate in a callback"),
        ({"top_p": 0.9}, "top_p=0.9) does not fit. TRL does not score with it"),
        ({"top_k": 5}, "top_k=5) does not fit"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1) does not fit"),
        ({"push_to_hub": True}, "Call trainer.push_to_hub() after the training"),
        ({"save_on_each_node": True}, "All ranks share one checkpoint"),
        ({"steps_per_generation": 2}, "steps_per_generation=2) does not fit gradient_accumulation_steps=1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_does_not_fit_is_refused(
    checkpoint: Path, tmp_path: Path, settings: dict[str, Any], text: str
) -> None:
    assert text in refused(checkpoint, tmp_path, **settings)


def test_a_temperature_does_not_fit_raw_logprobs(checkpoint: Path, tmp_path: Path) -> None:
    assert "Set it to 1" in refused(checkpoint, tmp_path, temperature=0.5, named={"raw_logprobs": True})


def test_allowed_tokens_do_not_fit_raw_logprobs(checkpoint: Path, tmp_path: Path) -> None:
    named = {"raw_logprobs": True, "allowed_token_ids": [20]}
    assert "Leave allowed_token_ids out" in refused(checkpoint, tmp_path, named=named)


def test_vespo_needs_a_correction_of_tokens(checkpoint: Path, tmp_path: Path) -> None:
    assert '"token_mask"' in refused(checkpoint, tmp_path, loss_type="vespo", named={"correction": True})


def test_packed_batches_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    packed: Any = FixedBatches([])
    packed.packing = 32768
    assert "Pass packing=None" in refused(checkpoint, tmp_path, batches=packed)


def test_batches_of_another_number_of_ranks_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    others: Any = FixedBatches([], ranks=2)
    assert "Create GRPOConfig" in refused(checkpoint, tmp_path, batches=others)


def test_images_without_a_materializer_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    stock = train_stock(checkpoint, tmp_path, images=True, max_steps=1)
    rows = rows_of(stock.generated[0])
    for row in rows:
        row["pixels"] = {}
    with pytest.raises(ConfigurationError, match=r"materializer=Materializer\.from_pretrained"):
        parts_of(step_of(rows))


def test_pixels_that_trl_cannot_pass_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    stock = train_stock(checkpoint, tmp_path, images=True, max_steps=1)
    other, integers = rows_of(stock.generated[0]), rows_of(stock.generated[0])
    for row in other:
        row["pixels"]["grid_thws"] = row["pixels"].pop("image_grid_thw")
    for row in integers:
        row["pixels"]["pixel_values"] = row["pixels"]["pixel_values"].byte()
    with pytest.raises(ConfigurationError, match="TRL cannot pass the inputs grid_thws, pixel_values"):
        parts_of(step_of(other))
    with pytest.raises(ConfigurationError, match="the pixels are not normalised"):
        parts_of(step_of(integers))


def parts_of(step: RankStep) -> None:
    step_rows(step.batch, trained_tokens=step.trained_tokens, parts=1, max_rows=8, pad_id=0)


def test_another_minor_version_of_trl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "version", lambda name: "1.17.2")
    with pytest.raises(ConfigurationError, match=r"works with TRL 1\.16, but 1\.17\.2 is installed"):
        rollout.trainer.trl.__getattr__("RolloutGRPOTrainer")


def test_without_trl_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installed, "version", not_installed)
    with pytest.raises(ConfigurationError, match=r"pip install 'rollout-rl\[trl\]'"):
        rollout.trainer.trl.__getattr__("last_checkpoint")
