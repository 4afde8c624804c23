"""Makes a model score tokens as an engine does that may not sample all of them.

An engine reports the log-probs of the distribution that it samples from. TRL scores over the whole vocabulary. So the
output layer gets a bias that leaves almost no probability to the tokens that the engine may not sample.
"""

from collections.abc import Sequence
from typing import Any

import torch

from rollout.errors import ConfigurationError
from rollout.trainer.batches.samples import TrainingSample

_BANNED_LOGIT = -1e9


class TokenBans:
    """The tokens that the engine may not sample.

    Args:
        models: the models that score: the policy, and the reference model if there is one.
        allowed_token_ids: the only tokens that the engine may sample; None: all but the banned ones of the samples.
    """

    def __init__(self, models: Sequence[Any], allowed_token_ids: Sequence[int] | None) -> None:
        self._heads = [model.get_output_embeddings() for model in models]
        self._allowed = None if allowed_token_ids is None else sorted(set(allowed_token_ids))
        self._has_bias = any(head._parameters.get("bias") is not None for head in self._heads)
        self._current: tuple[int, ...] = ()
        if self._allowed is not None:
            self._refuse_bias()
            self._apply(())

    def apply(self, samples: Sequence[TrainingSample]) -> None:
        """Score these samples as the engine did.

        Raises:
            ConfigurationError: the samples have different banned tokens, or the output layer has a bias of its own.
        """
        found = {sample.banned_ids for sample in samples}
        if len(found) > 1:
            raise ConfigurationError(
                f"the samples of a step have different banned tokens ({_shown(found)}), but TRL scores all samples of "
                "a step alike. Let every engine of the run ban the same tokens, or use engines that report raw "
                "log-probs (--logprobs-mode raw_logprobs) and pass raw_logprobs=True."
            )
        if found and (banned := found.pop()) != self._current:
            self._refuse_bias()
            self._apply(banned)

    def _apply(self, banned: tuple[int, ...]) -> None:
        """Set the bias as a plain attribute, so that it is neither in a checkpoint nor sent to other ranks."""
        for head in self._heads:
            weight = head.weight
            bias = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
            if self._allowed is not None:
                bias += _lowest(weight.dtype)
                bias[self._allowed] = 0
            bias[list(banned)] = _lowest(weight.dtype)
            head._parameters.pop("bias", None)
            head.bias = bias
        self._current = banned

    def _refuse_bias(self) -> None:
        if self._has_bias:
            raise ConfigurationError(
                "the output layer of the model has a bias of its own, so tokens cannot be banned in it. Let the engine "
                "report raw log-probs (--logprobs-mode raw_logprobs), and pass raw_logprobs=True."
            )


def _lowest(dtype: torch.dtype) -> float:
    """Return a logit that leaves no probability, but is finite, so that the entropy is finite too."""
    return max(_BANNED_LOGIT, float(torch.finfo(dtype).min) / 4)


def _shown(found: set[tuple[int, ...]]) -> str:
    return "; ".join(", ".join(map(str, banned[:5])) or "none" for banned in sorted(found)[:3])
