"""Drawing the next token of several sequences from their logits, with log-probs of just the distribution drawn from."""

from collections.abc import Sequence

import torch

from rollout.serving.engine import SampledToken
from rollout.serving.network.prompts import Prompt
from rollout.serving.sampling import GREEDY_BELOW

# Rounding must not lead past the last token that is possible.
_BELOW_ONE = 1 - 1e-12


def draw(logits: torch.Tensor, prompts: Sequence[Prompt]) -> list[SampledToken]:
    """One token for each row of logits, in float32.

    As in vLLM's processed log-probs, what is not allowed has none, the temperature counts, and where it is 0 the
    likeliest token is taken and its log-prob is that of temperature 1.
    """
    temperatures = [prompt.sampling.temperature for prompt in prompts]
    divisors = torch.tensor([1.0 if one < GREEDY_BELOW else one for one in temperatures], device=logits.device)
    logprobs = torch.log_softmax(_allowed(logits, prompts) / divisors[:, None], dim=-1)
    cumulated = logprobs.double().exp().cumsum(dim=-1)
    uniform = [[prompt.draw.random() * _BELOW_ONE] for prompt in prompts]
    thresholds = torch.tensor(uniform, dtype=torch.float64, device=logits.device) * cumulated[:, -1:]
    drawn = torch.searchsorted(cumulated, thresholds, right=True)[:, 0]
    greedy = torch.tensor([one < GREEDY_BELOW for one in temperatures], device=logits.device)
    chosen = torch.where(greedy, logprobs.argmax(dim=-1), drawn)
    own = logprobs.gather(1, chosen[:, None])
    ranks = 1 + (logprobs > own).sum(dim=-1)
    likeliest = _likeliest(logprobs, prompts)
    return [
        SampledToken(*row) for row in zip(chosen.tolist(), own[:, 0].tolist(), ranks.tolist(), likeliest, strict=True)
    ]


def _allowed(logits: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
    if all(prompt.sampling.allowed_token_ids is None for prompt in prompts):
        return logits
    forbidden = torch.zeros_like(logits, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        if prompt.sampling.allowed_token_ids is not None:
            forbidden[row] = True
            forbidden[row, prompt.sampling.allowed_token_ids] = False
    return logits.masked_fill(forbidden, float("-inf"))


def _likeliest(logprobs: torch.Tensor, prompts: Sequence[Prompt]) -> list[tuple[tuple[int, float], ...]]:
    """What requests want to see, and one more, since their own token may be among them; none that is impossible."""
    most = max(prompt.sampling.logprobs for prompt in prompts)
    if not most:
        return [()] * len(prompts)
    values, ids = logprobs.topk(min(most + 1, logprobs.shape[1]), dim=-1)
    return [
        tuple((token, value) for token, value in zip(*row, strict=True) if value != float("-inf"))
        for row in zip(ids.tolist(), values.tolist(), strict=True)
    ]
