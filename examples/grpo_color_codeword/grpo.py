"""GRPO in one screen: log-probs of the sampled tokens, advantages per answer, one clipped step for each batch.

Every sampled token is an answer of its own (see `environment`), so an advantage is an answer's: how far it lies above
the same answer of the other rollouts of its group, in standard deviations.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from rollout.trainer import Batch, Group, Materializer, TrainingSample, Trajectory, collate, samples

CLIP = 0.2
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Learnt:
    """What one step found, before it changed anything.

    Attributes:
        difference: the largest one between the sampler's log-prob of a token and ours, with the same weights.
        compared: how many tokens that was measured on: those of the version that is trained.
    """

    loss: float
    difference: float
    compared: int


class Learner:
    """A policy and its optimiser."""

    def __init__(self, checkpoint: Path, materializer: Materializer, allowed: Sequence[int]) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0)
        self._materializer = materializer
        self._allowed = torch.tensor(allowed)

    def step(self, groups: Sequence[Group], version: str) -> Learnt:
        """Learn from whole groups; `version` is what the weights are called now."""
        given = [sample for group in groups for trajectory in played(group) for sample in samples(trajectory)]
        batch = collate(given)
        advantages = torch.cat([advantages_of_answers(group) for group in groups])
        ours, theirs = self.logprobs(batch, given), sampled(batch, batch.logprobs)
        counted = slice(-advantages.shape[1], None)
        ratio = (ours - theirs)[:, counted].exp()
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        same = [name == version for name in batch.versions]
        comparable = torch.tensor(same)[sampled(batch, batch.version_index).long()]
        differences = (ours.detach() - theirs).abs()[comparable]
        return Learnt(loss.item(), max(differences.tolist(), default=0.0), differences.numel())

    def logprobs(self, batch: Batch, given: Sequence[TrainingSample]) -> torch.Tensor:
        """Of the sampled tokens, (samples, answers), among the tokens that the policy was allowed to say."""
        images, grids = self._images(pictures_of(batch.ordered(given)), given)
        positions, _ = self.model.model.get_rope_index(batch.token_ids, batch.token_types.int(), image_grid_thw=grids)
        logits = self.model(
            input_ids=batch.token_ids, position_ids=positions, mm_encoder_outputs={"image": images}, use_cache=False
        ).logits
        logprobs = sampled(batch, of_the_token_itself(logits))[..., self._allowed].log_softmax(-1)
        said = sampled(batch, batch.token_ids)[..., None] == self._allowed
        return (logprobs * said).sum(-1)

    def _images(self, shown: Sequence[str], given: Sequence[TrainingSample]) -> tuple[Any, torch.Tensor]:
        """Features and grids of what is shown, in order. A picture is encoded once, however many rollouts show it."""
        showing: dict[str, TrainingSample] = {}
        for sample in given:
            if not showing.keys() >= set(pictures_of([sample])):
                showing |= dict.fromkeys(pictures_of([sample]), sample)
        distinct = list({sample.rollout: sample for sample in showing.values()}.values())
        pixels = self._materializer.inputs(distinct)
        features = self.model.model.get_image_features(**pixels, return_dict=True)
        number = {name: at for at, name in enumerate(pictures_of(distinct))}
        order = [number[name] for name in shown]
        images = SimpleNamespace(
            pooler_output=[features.pooler_output[at] for at in order],
            deepstack_features=[[layer[at] for at in order] for layer in features.deepstack_features],
        )
        return images, pixels["image_grid_thw"][order]


def pictures_of(given: Iterable[TrainingSample]) -> list[str]:
    """The name of each image that samples show, in order and as often as they show it."""
    return [mark.hash for sample in given for mark in sample.placeholders]


def of_the_token_itself(logits: torch.Tensor) -> torch.Tensor:
    """Where a token lies, the logits that it was drawn from: a network gives them one position earlier."""
    return logits.roll(1, dims=1)


def sampled(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    """What lies at the sampled tokens, (samples, answers, …): each rollout of a batch samples as many as the others."""
    return values[batch.mask].unflatten(0, (len(batch.rollouts), -1))


def played(group: Group) -> list[Trajectory]:
    """The rollouts of a group that did not fail."""
    return [trajectory for trajectory in group.trajectories if trajectory.trainable]


def advantages_of_answers(group: Group) -> torch.Tensor:
    """(rollouts, answers that count)."""
    right = torch.tensor(
        [
            [trajectory.metrics[f"right.{answer}"] for answer in range(len(trajectory.metrics))]
            for trajectory in played(group)
        ]
    )
    return (right - right.mean(0)) / (right.std(0, unbiased=False) + 1e-6)
