"""Computes the ratio by which TRL corrects the difference between the engine and the trainer."""

from typing import Any

import torch


def importance_ratio(old: torch.Tensor, sampling: torch.Tensor, mask: torch.Tensor, args: Any) -> torch.Tensor:
    """Return the ratio of the trainer's and the engine's probabilities, as TRL computes it for vLLM.

    Args:
        old: the trainer's log-probs before the step, (rows, tokens).
        sampling: the engine's log-probs.
        mask: 1 for tokens that train.
        args: the `GRPOConfig`; its settings `vllm_importance_sampling_…` say what becomes of large ratios.

    Returns:
        One ratio for each token, or for each row if the mode begins with `sequence`.
    """
    difference = torch.nan_to_num((old - sampling) * mask, nan=0.0)
    level, treatment = args.vllm_importance_sampling_mode.split("_")
    if level == "sequence":
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = torch.exp(difference)
    least, most = args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max
    if treatment == "truncate":
        return torch.clamp(ratio, min=least, max=most)
    is_outside = torch.zeros_like(ratio, dtype=torch.bool)
    if least is not None:
        is_outside |= ratio < least
    if most is not None:
        is_outside |= ratio > most
    return ratio.masked_fill(is_outside, 0.0)
