"""GRPO: log-probs of the sampled tokens, an advantage for each answer, and one clipped step for each batch.

Before a step changes the weights, it compares its log-probs with those of the engine. It ends training if they differ.
Every sampled token is one answer (see `environment`). The advantage of an answer is how many standard deviations it is
above the mean of the same answer in its group.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from rollout.errors import RolloutError
from rollout.trainer import (
    Batch,
    ComparisonFinding,
    ComparisonThresholds,
    Group,
    LogprobComparison,
    Materializer,
    TrainingSample,
    Trajectory,
    collate,
    compare_logprobs,
    samples,
)

CLIP = 0.2
LEARNING_RATE = 1e-3


class WrongLogprobs(RolloutError):
    """The log-probs of the engine and of the trainer show that training would learn from wrong data."""


@dataclass(frozen=True)
class UpdateStats:
    """What a step measured before it changed the weights.

    Attributes:
        loss: the clipped loss of the batch.
        comparison: the log-probs of the engine and of the trainer for all sampled tokens.
        warnings: what is unusual about the comparison.
    """

    loss: float
    comparison: LogprobComparison
    warnings: tuple[ComparisonFinding, ...] = ()


class Learner:
    """A policy and its optimiser.

    Attributes:
        model: the policy.
    """

    def __init__(self, checkpoint: Path, materializer: Materializer, allowed_tokens: Sequence[int]) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0)
        self._materializer = materializer
        self._allowed_tokens = torch.tensor(allowed_tokens)

    def step(self, groups: Sequence[Group], version: int, thresholds: ComparisonThresholds) -> UpdateStats:
        """Learn from whole groups. `version` is the version of the weights before this step.

        The log-probs must keep the thresholds.

        Raises:
            WrongLogprobs: the log-probs differ from those of the engine, or none can be compared; nothing is learned.
        """
        training_samples = [
            sample for group in groups for trajectory in trainable_trajectories(group) for sample in samples(trajectory)
        ]
        batch = collate(training_samples)
        advantages = torch.cat([advantages_of_answers(group) for group in groups])
        trainer_logprobs, sampler_logprobs = (
            self.logprobs(batch, training_samples),
            at_sampled_tokens(batch, batch.logprobs),
        )
        comparison = compare_logprobs(batch, trainer_logprobs.flatten(), version, clip=CLIP)
        findings = comparison.findings(thresholds)
        if error := next((finding for finding in findings if finding.severity == "error"), None):
            raise WrongLogprobs(f"step {version + 1} changed no weights: {error.text}")
        scored_answers = slice(-advantages.shape[1], None)
        ratio = (trainer_logprobs - sampler_logprobs)[:, scored_answers].exp()
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        return UpdateStats(loss.item(), comparison, tuple(findings))

    def logprobs(self, batch: Batch, training_samples: Sequence[TrainingSample]) -> torch.Tensor:
        """Return the log-probs of the sampled tokens, (samples, answers), among the allowed tokens."""
        images, grids = self._encode_images(image_names_of(batch.samples), training_samples)
        positions, _ = self.model.model.get_rope_index(batch.token_ids, batch.token_types.int(), image_grid_thw=grids)
        logits = self.model(
            input_ids=batch.token_ids, position_ids=positions, mm_encoder_outputs={"image": images}, use_cache=False
        ).logits
        logprobs = at_sampled_tokens(batch, align_logits_with_tokens(logits))[..., self._allowed_tokens].log_softmax(-1)
        is_sampled_token = at_sampled_tokens(batch, batch.token_ids)[..., None] == self._allowed_tokens
        return (logprobs * is_sampled_token).sum(-1)

    def _encode_images(
        self, image_names: Sequence[str], training_samples: Sequence[TrainingSample]
    ) -> tuple[Any, torch.Tensor]:
        """Return features and grids of the named images, in order. Each image is encoded only once."""
        sample_by_image: dict[str, TrainingSample] = {}
        for sample in training_samples:
            if not sample_by_image.keys() >= set(image_names_of([sample])):
                sample_by_image |= dict.fromkeys(image_names_of([sample]), sample)
        distinct = list({sample.rollout: sample for sample in sample_by_image.values()}.values())
        pixels = self._materializer.inputs(distinct)
        features = self.model.model.get_image_features(**pixels, return_dict=True)
        index_by_image = {name: at for at, name in enumerate(image_names_of(distinct))}
        order = [index_by_image[name] for name in image_names]
        images = type(features)(
            pooler_output=[features.pooler_output[at] for at in order],
            deepstack_features=[[layer[at] for at in order] for layer in features.deepstack_features],
        )
        return images, pixels["image_grid_thw"][order]


def image_names_of(training_samples: Iterable[TrainingSample]) -> list[str]:
    """Return the name of each image of the samples, in order and as often as they have it."""
    return [mark.hash for sample in training_samples for mark in sample.placeholders]


def align_logits_with_tokens(logits: torch.Tensor) -> torch.Tensor:
    """Move the logits to the position of the token that was sampled from them; a network returns them one before it."""
    return logits.roll(1, dims=1)


def at_sampled_tokens(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    """Return the values at the sampled tokens, (samples, answers, …). All rollouts of a batch sample equally many."""
    return values[batch.mask].unflatten(0, (len(batch.samples), -1))


def trainable_trajectories(group: Group) -> list[Trajectory]:
    """Return the trajectories of a group that train."""
    return [trajectory for trajectory in group.trajectories if trajectory.trainable]


def advantages_of_answers(group: Group) -> torch.Tensor:
    """Return the advantage of every answer that counts, (rollouts, answers)."""
    right = torch.tensor(
        [
            [trajectory.metrics[f"right.{answer}"] for answer in range(_count_answers(trajectory))]
            for trajectory in trainable_trajectories(group)
        ]
    )
    return (right - right.mean(0)) / (right.std(0, unbiased=False) + 1e-6)


def _count_answers(trajectory: Trajectory) -> int:
    return sum(name.startswith("right.") for name in trajectory.metrics)
