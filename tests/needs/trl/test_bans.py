"""The trainer scores tokens as an engine that may not sample all of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from rollout.errors import ConfigurationError
from rollout.trainer import RankStep
from rollout.trainer.trl import RolloutGRPOTrainer
from tests.needs.trl.world import ANYTHING, FixedBatches, config, rows_of, step_of, train_stock

ALLOWED = range(20, 200)
"""All tokens of a scripted answer."""
BANNED = (3, 5, 250)


@pytest.fixture(scope="module")
def rows(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    stock = train_stock(checkpoint, tmp_path_factory.mktemp("out"), images=False, max_steps=1)
    return rows_of(stock.generated[0])


def scored(
    checkpoint: Path, rows: list[dict[str, Any]], excluded: torch.Tensor, temperature: float, banned: tuple[int, ...]
) -> RankStep:
    """Return a step with the log-probs of an engine that samples at a temperature, without the excluded tokens."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    new_rows = []
    for row in rows:
        sample = row["sample"]
        ids = torch.from_numpy(sample.token_ids).long()
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1] / temperature
        logprobs = logits.index_fill(-1, excluded, float("-inf")).log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        values = torch.cat([torch.zeros(1), logprobs]) * torch.from_numpy(sample.mask)
        values = values.nan_to_num(0.0, neginf=0.0)
        new_rows.append(row | {"sample": replace(sample, logprobs=values.numpy(), banned_ids=banned)})
    return step_of(new_rows)


def difference_of(checkpoint: Path, directory: Path, step: RankStep, *, save: bool = False, **arguments: Any) -> float:
    """Train the step; return the largest difference of the log-probs."""
    batches: Any = FixedBatches([step])
    settings = {"max_steps": 1, "temperature": arguments.pop("temperature", 1.0)}
    trainer = RolloutGRPOTrainer(
        str(checkpoint), batches, args=config(directory, **settings), thresholds=ANYTHING, **arguments
    )
    trainer.train()
    if save:
        trainer.save_model(str(directory))
    [line] = [line for line in trainer.state.log_history if "loss" in line]
    assert line["entropy"] > 0
    return float(line["sampling/sampling_logp_difference/max"])


def test_only_allowed_tokens_are_scored(checkpoint: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    excluded = torch.tensor([at for at in range(vocabulary_of(checkpoint)) if at not in ALLOWED])
    step = scored(checkpoint, rows, excluded, 0.7, ())
    arguments: dict[str, Any] = {"temperature": 0.7, "allowed_token_ids": ALLOWED, "save": True}
    assert difference_of(checkpoint, tmp_path, step, **arguments) < 1e-4
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "bias" in name and "lm_head" in name]


def test_banned_tokens_of_the_samples_are_not_scored(
    checkpoint: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    step = scored(checkpoint, rows, torch.tensor(BANNED), 1.0, BANNED)
    assert difference_of(checkpoint, tmp_path, step) < 1e-4


def test_raw_logprobs_are_of_all_tokens(checkpoint: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    step = scored(checkpoint, rows, torch.tensor([], dtype=torch.int64), 1.0, BANNED)
    assert difference_of(checkpoint, tmp_path, step, raw_logprobs=True) < 1e-4


def test_samples_with_different_bans_are_refused(checkpoint: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    mixed = [
        row | {"sample": replace(row["sample"], banned_ids=banned)}
        for row, banned in zip(rows, [(), BANNED, BANNED, BANNED], strict=True)
    ]
    with pytest.raises(ConfigurationError, match="different banned tokens"):
        difference_of(checkpoint, tmp_path, step_of(mixed))


def vocabulary_of(checkpoint: Path) -> int:
    return int(load_file(checkpoint / "model.safetensors")["model.language_model.embed_tokens.weight"].shape[0])
