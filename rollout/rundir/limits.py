"""Warns if limits stopped every rollout of a run."""

from collections.abc import Mapping

from rollout.config.load import Config
from rollout.records.endings import RolloutLimit, RolloutStatus


def warn_if_all_limited(
    limit_counts: Mapping[str, int], status_counts: Mapping[str, int], config: Config
) -> str | None:
    """Return a warning if limits stopped all rollouts that have ended, not counting abandoned ones; otherwise None.

    Args:
        limit_counts: the number of rollouts that each limit stopped.
        status_counts: the number of rollouts that ended with each status.
        config: the configuration with the limits.
    """
    ended = sum(count for status, count in status_counts.items() if status != RolloutStatus.ABANDONED)
    if not ended or sum(limit_counts.values()) < ended:
        return None
    budget = config.gateway.limits
    advice = {
        RolloutLimit.TURNS: "the environment's limit of turns: raise it"
        f"{_also_raise('turns', budget.turns)}, or teach the policy to finish earlier",
        RolloutLimit.TOKENS: "the length limit of an answer: raise engine.sampling.max_tokens"
        f" (now {config.engine.sampling.max_tokens}){_also_raise('tokens', budget.tokens)}",
        RolloutLimit.CONTEXT: "the model's context: raise the engine's max_model_len,"
        " make the conversations shorter, or score the part that fits"
        " (ContextExhausted, MultiTurnEnvironment.truncated)",
        RolloutLimit.TIME: "a time limit: raise that of the environment, such as environment.timeout of a program,"
        f" worker.turn_timeout (now {config.worker.turn_timeout:g} s),"
        f" worker.rollout_timeout (now {config.worker.rollout_timeout:g} s) or policy.straggler_grace"
        f" (now {config.policy.straggler_grace:g} s){_also_raise('seconds', budget.seconds)}",
    }
    reasons = [(advice[limit], limit_counts[limit]) for limit in advice if limit_counts.get(limit)]
    if len(reasons) == 1:
        return f"every rollout was stopped by {reasons[0][0]}"
    return "every rollout was stopped by a limit: " + "; ".join(f"{count} by {limit}" for limit, count in reasons)


def _also_raise(name: str, value: float | None) -> str:
    """Return the advice to raise a limit of the gateway; empty if it is not set."""
    return "" if value is None else f", or gateway.limits.{name} (now {value:,.15g})"
