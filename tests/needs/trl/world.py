"""A stock trainer whose generation is scripted, and a trainer of ours that gets the rows of the stock one."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from trl import GRPOConfig, GRPOTrainer

from renderers_adapter.tokens import ExpandedIds, Placeholder
from rollout.trainer import ComparisonThresholds, RankStep, TrainingSample, collate
from rollout.trainer.trl import RolloutGRPOTrainer

ANYTHING = ComparisonThresholds(mean_difference=math.inf, published_share=0.0, clipped_share=1.0)
ROWS = 4


def config(directory: Path | str, **settings: Any) -> GRPOConfig:
    """Return TRL's settings for a tiny model on the CPU."""
    defaults = {
        "output_dir": str(directory),
        "per_device_train_batch_size": ROWS,
        "num_generations": 2,
        "max_steps": 3,
        "max_completion_length": 8,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "optim": "sgd",
        "max_grad_norm": 1e9,
        "disable_tqdm": True,
        "shuffle_dataset": False,
        "model_init_kwargs": {"dtype": "float32"},
    }
    return GRPOConfig(**(defaults | settings))


class RecordedGradients:
    """Keeps the gradients of each step; a base class of trainers."""

    gradients: list[dict[str, torch.Tensor]]

    def _clip_grad_norm(self, model: Any) -> Any:
        named = self.accelerator.unwrap_model(model).named_parameters()  # type: ignore[attr-defined]
        self.gradients.append({name: value.grad.clone() for name, value in named if value.grad is not None})
        return super()._clip_grad_norm(model)  # type: ignore[misc]


class StockTrainer(RecordedGradients, GRPOTrainer):
    """TRL's trainer; only the generation is scripted.

    Args:
        by_token: whether each token has an advantage of its own.
        corrected: whether TRL computes the old log-probs and its importance ratio, as with vLLM.
    """

    def __init__(self, *args: Any, by_token: bool, corrected: bool, **named: Any) -> None:
        self.gradients, self.generated = [], []  # type: list[dict[str, torch.Tensor]], list[dict[str, Any]]
        self._by_token, self._corrected = by_token, corrected
        super().__init__(*args, **named)
        self.use_vllm = self.vllm_importance_sampling_correction = corrected

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        random = np.random.default_rng(7 + self._step)
        answers = [random.integers(20, 200, random.integers(3, 9)).tolist() for _ in prompt_ids]
        return answers, [(-random.uniform(6.0, 7.5, len(answer))).tolist() for answer in answers]

    def _generate(self, prompts: list[Any]) -> Any:
        generated = list(super()._generate(prompts))
        generated[2] = [[int(at % 4 != 2) for at in range(len(answer))] for answer in generated[1]]
        return tuple(generated)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        rows: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self._corrected:
            rows["old_per_token_logps"] = rows["sampling_per_token_logps"]
        if self._by_token:
            factors = torch.rand(rows["completion_ids"].shape, generator=torch.Generator().manual_seed(1))
            rows["advantages"] = rows["advantages"][:, None] * factors
        self.generated.append(rows)
        return rows


class OurTrainer(RecordedGradients, RolloutGRPOTrainer):
    """Our trainer, with its gradients."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self.gradients = []
        super().__init__(*args, **named)


class FixedBatches:
    """Stands in for `RankBatches`: one rank, and steps that a test has made."""

    packing = None
    data_rank = None
    version: int | None = None

    def __init__(self, steps: Sequence[RankStep], ranks: int = 1) -> None:
        self._steps = iter(steps)
        self.ranks = ranks

    def __iter__(self) -> Iterator[RankStep]:
        return self._steps

    def __next__(self) -> RankStep:
        return next(self._steps)


def train_stock(
    checkpoint: Path, directory: Path, *, images: bool, by_token: bool = False, corrected: bool = False, **settings: Any
) -> StockTrainer:
    """Train three steps of four rows with TRL's own trainer."""
    table: dict[str, list[Any]] = {"prompt": [[{"role": "user", "content": "What is it?"}]] * (2 * ROWS)}
    if images:
        colors = ("red", "green", "blue", "yellow") * 2
        table["image"] = [Image.new("RGB", (64, 32 * (1 + at % 3)), color) for at, color in enumerate(colors)]
    trainer = StockTrainer(
        str(checkpoint),
        by_token=by_token,
        corrected=corrected,
        reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 7) for ids in completion_ids],
        args=config(directory, **settings),
        train_dataset=Dataset.from_dict(table),
    )
    trainer.train()
    return trainer


def train_ours(
    checkpoint: Path, directory: Path, steps: Sequence[RankStep], *, correction: bool = False, **settings: Any
) -> OurTrainer:
    """Train the steps with our trainer."""
    batches: Any = FixedBatches(steps)
    trainer = OurTrainer(
        str(checkpoint), batches, args=config(directory, **settings), correction=correction, thresholds=ANYTHING
    )
    trainer.train()
    return trainer


def steps_of(stock: StockTrainer) -> list[RankStep]:
    """Return the rows of a stock trainer as the steps of our batches."""
    return [step_of(rows_of(generated)) for generated in stock.generated]


def step_of(rows: Sequence[dict[str, Any]], *, ranks: int = 1, rank: int = 0) -> RankStep:
    """Return the part of one rank in a step of these rows."""
    own = list(rows[rank::ranks])
    batch = collate(
        [row["sample"] for row in own],
        advantages=[row["advantages"] for row in own],
        min_rows=math.ceil(len(rows) / ranks),
    )
    pixels = defaultdict(list)
    for row in own:
        for name, value in row["pixels"].items():
            pixels[name].append(value)
    places = [(0, 0, mark.offset, mark.length) for row in own for mark in row["sample"].placeholders]
    batch = replace(
        batch,
        pixels={name: torch.cat(values) for name, values in pixels.items()},
        placeholders=torch.tensor(places).reshape(-1, 4),
    )
    return RankStep(
        number=1,
        groups=("a", "b"),
        samples=len(rows),
        trained_tokens=sum(int(row["sample"].mask.sum()) for row in rows),
        reward=0.5,
        reward_std=0.25,
        rewards={"colour": 0.5},
        uniform_groups=1,
        failed=3,
        has_images=any(row["pixels"] for row in rows),
        batch=batch,
    )


def rows_of(generated: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of TRL's dictionary, each as a sample with its advantages and its pixels."""
    rows, image, patch = [], 0, 0
    for at in range(len(generated["prompt_ids"])):
        prompt = generated["prompt_ids"][at][generated["prompt_mask"][at].bool()]
        length = int(generated["completion_mask"][at].sum())
        count = generated["num_images"][at] if "num_images" in generated else 0
        pixels, types = {}, torch.zeros(len(prompt) + length)
        if count:
            grids = generated["image_grid_thw"][image : image + count]
            patches = int(grids.prod(-1).sum())
            pixels = {"pixel_values": generated["pixel_values"][patch : patch + patches], "image_grid_thw": grids}
            image, patch = image + count, patch + patches
            real = torch.cat([generated["prompt_mask"][at], generated["completion_mask"][at]]).bool()
            types = generated["mm_token_type_ids"][at][real]
        advantages = generated["advantages"][at] * torch.ones(generated["completion_ids"].shape[1])
        rows.append(
            {
                "sample": _sample(
                    token_ids=torch.cat([prompt, generated["completion_ids"][at][:length]]),
                    mask=torch.cat([torch.zeros(len(prompt)), generated["tool_mask"][at][:length]]),
                    logprobs=torch.cat([torch.zeros(len(prompt)), generated["sampling_per_token_logps"][at][:length]]),
                    token_types=types,
                    images=count,
                ),
                "advantages": np.concatenate([np.zeros(len(prompt)), advantages[:length].numpy()]),
                "pixels": pixels,
            }
        )
    return rows


def _sample(*, token_ids: Any, mask: Any, logprobs: Any, token_types: Any, images: int) -> TrainingSample:
    trains = mask.bool().numpy()
    return TrainingSample(
        rollout="000000.0",
        group="000000",
        leaf=1,
        reward=1.0,
        token_ids=ExpandedIds(token_ids.int().numpy()),
        mask=trains,
        logprobs=logprobs.float().numpy(),
        token_types=token_types.to(torch.uint8).numpy(),
        version_index=np.where(trains, 0, -1).astype(np.int32),
        versions=("0",),
        turn_index=np.where(trains, 0, -1).astype(np.int32),
        turns=(0,),
        token_rewards=np.zeros(len(trains), np.float32),
        content=np.zeros(len(trains), np.uint8),
        placeholders=tuple(Placeholder(f"{at:032x}", at, 1) for at in range(images)),
        images=({},) * images,
        image_directory="",
    )
