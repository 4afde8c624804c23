"""Rollouts that a limit cut off: a run of which every rollout was cut has a limit that is too low."""

from collections.abc import Mapping
from enum import StrEnum

from rollout.config.load import Config
from rollout.records.kinds import RolloutStatus


class CutReason(StrEnum):
    """Which limit cut a rollout off.

    Attributes:
        LENGTH: its last answer was as long as it may be.
        CONTEXT: its conversation was longer than the context of the model.
        STRAGGLER: the rest of its group was done long before.
        TIME: it, or one turn of it, took too long.
    """

    LENGTH = "length"
    CONTEXT = "context"
    STRAGGLER = "straggler"
    TIME = "time"


_REASONS_BY_ERROR = {
    (RolloutStatus.TRUNCATED, None): CutReason.LENGTH,
    (RolloutStatus.TRUNCATED, "ContextExhausted"): CutReason.CONTEXT,
    (RolloutStatus.TRUNCATED, "StragglerCut"): CutReason.STRAGGLER,
    (RolloutStatus.FAILED, "RolloutTimeout"): CutReason.TIME,
}


def cut_reason(status: str, error: Mapping[str, str] | None) -> CutReason | None:
    """Return which limit cut a rollout off that ended with this status and this error; None if none did."""
    return _REASONS_BY_ERROR.get((RolloutStatus(status), None if error is None else error.get("type")))


def warn_if_all_cut(cuts: Mapping[str, int], status_counts: Mapping[str, int], config: Config) -> str | None:
    """Return what to say if every rollout was cut off; None if one was not, or if none has ended.

    Abandoned rollouts are not counted.

    Args:
        cuts: how many rollouts each limit cut off.
        status_counts: how many rollouts ended with each status.
        config: the configuration with the limits.
    """
    ended = sum(count for status, count in status_counts.items() if status != RolloutStatus.ABANDONED)
    if not ended or sum(cuts.values()) < ended:
        return None
    limits = {
        CutReason.LENGTH: "the length limit: raise engine.sampling.max_tokens"
        f" (now {config.engine.sampling.max_tokens}), or the engine's max_model_len",
        CutReason.CONTEXT: "the model's context: raise the engine's max_model_len, or make the conversations shorter",
        CutReason.STRAGGLER: "policy.stragglers: raise policy.straggler_grace"
        f" (now {config.policy.straggler_grace:g} s)",
        CutReason.TIME: f"a time limit: raise worker.turn_timeout (now {config.worker.turn_timeout:g} s) or"
        f" worker.rollout_timeout (now {config.worker.rollout_timeout:g} s)",
    }
    reasons = [(limits[reason], cuts[reason]) for reason in CutReason if cuts.get(reason)]
    if len(reasons) == 1:
        return f"every rollout was cut by {reasons[0][0]}"
    return "every rollout was cut: " + "; ".join(f"{count} by {limit}" for limit, count in reasons)
