"""A policy that is sharded over all ranks with FSDP, and a step that each rank takes with its part of the batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForImageTextToText

from examples.grpo_color_codeword.grpo import CLIP, LEARNING_RATE, WrongLogprobs, align_logits_with_tokens
from rollout.trainer import Batch, ComparisonThresholds, LogprobComparison, RankStep, compare_logprobs


class ShardedLearner:
    """A policy and its optimiser, of which each rank has a part. Every rank must call each method.

    Attributes:
        model: the policy.
    """

    def __init__(self, checkpoint: Path, allowed_tokens: Sequence[int]) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in self.model.model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        # The rest, with the vision tower, is one unit. It stays whole until the backward pass; see `_unused_tower`.
        fully_shard(self.model, mesh=mesh, reshard_after_forward=False)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0)
        self._allowed_tokens = torch.tensor(allowed_tokens)

    def step(self, step: RankStep, version: int, thresholds: ComparisonThresholds) -> LogprobComparison:
        """Learn from a step. Return the comparison of all ranks' log-probs with those of the engine.

        The loss is the sum over the tokens of all ranks, divided by their number. So the gradient does not depend on
        how the samples are distributed over the ranks.

        Raises:
            WrongLogprobs: the log-probs differ from those of the engine, or none can be compared; nothing is learned.
                Every rank raises it, because each of them has the comparison of all ranks.
        """
        batch = step.batch
        logprobs, unused = self._logprobs(batch, any_images=step.has_images)
        comparison = LogprobComparison.merged(gather(compare_logprobs(batch, logprobs, version, clip=CLIP)))
        if errors := [found.text for found in comparison.findings(thresholds) if found.severity == "error"]:
            raise WrongLogprobs(f"step {version + 1} changed no weights: {errors[0]}")
        ratio = (logprobs - batch.logprobs[batch.mask]).exp()
        assert batch.advantages is not None
        advantages = batch.advantages[batch.mask]
        token_losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        # FSDP divides the sum of the ranks' gradients by the number of ranks.
        loss = (token_losses.sum() + unused) * dist.get_world_size() / step.trained_tokens
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        return comparison

    def _logprobs(self, batch: Batch, *, any_images: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probs of the trained tokens among the allowed tokens, and a zero to add to the loss."""
        logits = self.model(**batch.model_inputs()).logits
        logprobs = align_logits_with_tokens(logits)[batch.mask][:, self._allowed_tokens].log_softmax(-1)
        is_sampled_token = batch.token_ids[batch.mask][:, None] == self._allowed_tokens
        unused = self._unused_tower() if any_images and not batch.pixels else torch.zeros(())
        return (logprobs * is_sampled_token).sum(-1), unused

    def _unused_tower(self) -> torch.Tensor:
        """Run the vision tower on an image that no token sees; return a zero that depends on it.

        All ranks must have gradients for the same weights, because FSDP sums them in one operation. A rank without
        images would have none for the tower.
        """
        vision = self.model.config.vision_config
        side = vision.spatial_merge_size
        patch_size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        features = self.model.model.get_image_features(
            torch.zeros(side * side, patch_size), torch.tensor([[1, side, side]]), return_dict=True
        )
        outputs = [*features.pooler_output, *(image for layer in features.deepstack_features for image in layer)]
        return 0.0 * torch.stack([output.sum() for output in outputs]).sum()

    def full_weights(self) -> dict[str, torch.Tensor]:
        """Return the whole weights in the memory of the first rank, and nothing on the others."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: dict[str, torch.Tensor] = get_model_state_dict(self.model, options=options)
        return weights

    def save_pretrained(self, directory: Path, weights: dict[str, torch.Tensor]) -> None:
        """Write whole weights as a checkpoint, on one rank."""
        self.model.save_pretrained(directory, state_dict=weights)

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's part of the weights and of the optimiser's state, for torch.distributed.checkpoint."""
        weights, optimizer = get_state_dict(self.model, self._optimizer)
        return {"weights": weights, "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that torch.distributed.checkpoint has filled."""
        set_state_dict(
            self.model,
            self._optimizer,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizer"],
        )


def gather(value: Any) -> list[Any]:
    """Return the value of each rank, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
