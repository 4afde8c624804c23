"""Samples the next token of several sequences from their logits, with the exact log-probs."""

from collections.abc import Sequence

import torch

from rollout.serving.engine import SampledToken
from rollout.serving.network.prompts import NetworkPrompt
from rollout.serving.protocol import LEAST_LOGIT_BIAS
from rollout.serving.sampling import MIN_SAMPLING_TEMPERATURE

# With this factor, rounding cannot select a token after the last possible one.
_BELOW_ONE = 1 - 1e-12


def sample_tokens(logits: torch.Tensor, prompts: Sequence[NetworkPrompt]) -> list[SampledToken]:
    """Sample one token for each row of logits, which are in float32.

    As in vLLM's processed log-probs, biases are added, forbidden tokens are left out, and the temperature is applied.
    At temperature 0, the likeliest token is chosen, and its log-prob is that at temperature 1.
    """
    temperatures = [prompt.sampling_params.temperature for prompt in prompts]
    divisors = torch.tensor(
        [1.0 if temperature < MIN_SAMPLING_TEMPERATURE else temperature for temperature in temperatures],
        device=logits.device,
    )
    logprobs = torch.log_softmax(_mask_forbidden(_add_biases(logits, prompts), prompts) / divisors[:, None], dim=-1)
    cumulative_probabilities = logprobs.double().exp().cumsum(dim=-1)
    uniform = [[prompt.rng.random() * _BELOW_ONE] for prompt in prompts]
    thresholds = torch.tensor(uniform, dtype=torch.float64, device=logits.device) * cumulative_probabilities[:, -1:]
    sampled_ids = torch.searchsorted(cumulative_probabilities, thresholds, right=True)[:, 0]
    greedy = torch.tensor([one < MIN_SAMPLING_TEMPERATURE for one in temperatures], device=logits.device)
    token_ids = torch.where(greedy, logprobs.argmax(dim=-1), sampled_ids)
    token_logprobs = logprobs.gather(1, token_ids[:, None])
    ranks = 1 + (logprobs > token_logprobs).sum(dim=-1)
    top_logprobs = _top_logprobs(logprobs, prompts)
    return [
        SampledToken(*row)
        for row in zip(token_ids.tolist(), token_logprobs[:, 0].tolist(), ranks.tolist(), top_logprobs, strict=True)
    ]


def _add_biases(logits: torch.Tensor, prompts: Sequence[NetworkPrompt]) -> torch.Tensor:
    if not any(prompt.sampling_params.logit_bias for prompt in prompts):
        return logits
    biased = logits.clone()
    for row, prompt in enumerate(prompts):
        biases = prompt.sampling_params.logit_bias or {}
        values = torch.tensor([*biases.values()], dtype=logits.dtype, device=logits.device)
        biased[row, [*biases]] += values.clamp(LEAST_LOGIT_BIAS, -LEAST_LOGIT_BIAS)
    return biased


def _mask_forbidden(logits: torch.Tensor, prompts: Sequence[NetworkPrompt]) -> torch.Tensor:
    if all(prompt.sampling_params.allowed_token_ids is None for prompt in prompts):
        return logits
    forbidden = torch.zeros_like(logits, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        if prompt.sampling_params.allowed_token_ids is not None:
            forbidden[row] = True
            forbidden[row, prompt.sampling_params.allowed_token_ids] = False
    return logits.masked_fill(forbidden, float("-inf"))


def _top_logprobs(logprobs: torch.Tensor, prompts: Sequence[NetworkPrompt]) -> list[tuple[tuple[int, float], ...]]:
    """Return the likeliest tokens of each row: one more than requested, because the sampled token may be among them."""
    max_count = max(prompt.sampling_params.logprobs for prompt in prompts)
    if not max_count:
        return [()] * len(prompts)
    values, ids = logprobs.topk(min(max_count + 1, logprobs.shape[1]), dim=-1)
    return [
        tuple((token, value) for token, value in zip(*row, strict=True) if value != float("-inf"))
        for row in zip(ids.tolist(), values.tolist(), strict=True)
    ]
