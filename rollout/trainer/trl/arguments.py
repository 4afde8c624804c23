"""Refuses settings of TRL that do not fit batches from the queue, and says what to do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rollout.trainer.ranks.batches import RankBatches
from rollout.trainer.trl.errors import UnsupportedConfig

ROW_LOSSES = frozenset({"grpo", "sapo", "dr_grpo", "luspo"})
"""The losses that TRL divides by rows. So rows of padding must be taken out."""
TOKEN_LOSSES = frozenset({"dapo", "cispo", "vespo"})
"""The losses that TRL divides by the tokens that train on all ranks."""


@dataclass(frozen=True, slots=True)
class _Rule:
    setting: str
    """The name of the setting."""
    fits: Callable[[Any], bool]
    """Whether a value fits."""
    advice: str
    """Why another value does not fit, and what to do."""


def _off(value: Any) -> bool:
    return not value


_SAMPLING_ADVICE = "TRL does not score with it. Leave it out, and out of engine.sampling, too."
_RULES = (
    _Rule("max_steps", lambda value: value > 0, "The queue has no length. Set the maximum number of steps."),
    _Rule("num_iterations", lambda value: value == 1, "Each group trains once. Set it to 1."),
    _Rule(
        "loss_type",
        lambda value: value in ROW_LOSSES | TOKEN_LOSSES,
        "Its value depends on which rows share a micro-batch. Use one of "
        + ", ".join(sorted(ROW_LOSSES | TOKEN_LOSSES))
        + ".",
    ),
    _Rule("use_vllm", _off, "The engines of the launch sample. Set it to False."),
    _Rule("entropy_coef", _off, "The bonus would be divided by rows of padding. Set it to 0."),
    _Rule("use_adaptive_entropy", _off, "The bonus would be divided by rows of padding. Set it to False."),
    _Rule(
        "mask_truncated_completions",
        _off,
        "Use ReaderSettings(untrained_limits=…) to leave out rollouts that a limit stopped.",
    ),
    _Rule("log_completions", _off, "`rollout inspect` shows the rollouts. Set it to False."),
    _Rule(
        "eval_strategy",
        lambda value: getattr(value, "value", value) == "no",
        "The queue has no evaluation. Call rollout.trainer.evaluate in a callback.",
    ),
    _Rule("top_p", lambda value: value == 1.0, _SAMPLING_ADVICE),
    _Rule("top_k", _off, _SAMPLING_ADVICE),
    _Rule("min_p", _off, _SAMPLING_ADVICE),
    _Rule("repetition_penalty", lambda value: value == 1.0, _SAMPLING_ADVICE),
    _Rule(
        "push_to_hub",
        _off,
        "TRL would upload a checkpoint that is being written. Call trainer.push_to_hub() after the training.",
    ),
    _Rule(
        "save_strategy",
        lambda value: getattr(value, "value", value) != "best",
        'There is no evaluation that could say which one is best. Use "steps".',
    ),
    _Rule("save_on_each_node", _off, "All ranks share one checkpoint, with the state of the batches."),
    _Rule("auto_find_batch_size", _off, "A step that has failed cannot be read again. Set it to False."),
)


def check_arguments(args: Any, batches: RankBatches, *, correction: bool, raw_logprobs: bool, allowed: bool) -> None:
    """Check a `GRPOConfig` and the batches.

    Raises:
        UnsupportedConfig: a setting does not fit.
    """
    for rule in _RULES:
        if not rule.fits(value := getattr(args, rule.setting)):
            raise UnsupportedConfig(f"GRPOConfig({rule.setting}={value!r}) does not fit. {rule.advice}")
    if args.steps_per_generation != args.gradient_accumulation_steps:
        raise UnsupportedConfig(
            f"GRPOConfig(steps_per_generation={args.steps_per_generation}) does not fit "
            f"gradient_accumulation_steps={args.gradient_accumulation_steps}. Each step of the batches is one step of "
            "the optimiser, so leave steps_per_generation out."
        )
    if raw_logprobs and args.temperature != 1.0:
        raise UnsupportedConfig(
            f"GRPOConfig(temperature={args.temperature:g}) does not fit raw_logprobs=True, because raw log-probs are "
            "from before the temperature. Set it to 1."
        )
    if raw_logprobs and allowed:
        raise UnsupportedConfig(
            "allowed_token_ids does not fit raw_logprobs=True, because raw log-probs are of the whole vocabulary. "
            "Leave allowed_token_ids out."
        )
    if correction and args.loss_type == "vespo" and not args.vllm_importance_sampling_mode.startswith("token"):
        raise UnsupportedConfig(
            f"GRPOConfig(vllm_importance_sampling_mode={args.vllm_importance_sampling_mode!r}) does not fit "
            'loss_type="vespo". Use "token_truncate" or "token_mask".'
        )
    if batches.packing is not None:
        raise UnsupportedConfig(
            f"open_batches(packing={batches.packing}) does not fit, because TRL needs a row for each sample. Pass "
            "packing=None."
        )
    if batches.data_rank is not None:
        raise UnsupportedConfig(
            "open_batches(data_rank=…) does not fit, because each rank of TRL trains on data of its own. Leave it out."
        )
    if batches.ranks != args.world_size:
        raise UnsupportedConfig(
            f"the batches are for {batches.ranks} ranks, but TRL trains on {args.world_size}. Create GRPOConfig, which "
            "starts torch.distributed, before you call open_batches()."
        )
