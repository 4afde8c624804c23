"""Warns if programs ran, and none of them asked the policy."""

from collections.abc import Mapping
from typing import Any

from rollout.records.endings import RolloutStatus


def warn_if_no_turns(totals: Mapping[str, Any]) -> str | None:
    """Return a warning if endpoints were opened, and no rollout that has ended has a turn; otherwise None.

    Args:
        totals: the report of the rollouts; see `OutcomeTotals.report`. Abandoned rollouts do not count.
    """
    ended = sum(count for status, count in totals["status"].items() if status != RolloutStatus.ABANDONED)
    if not ended or totals["turns"] or not (totals["gateway"] or {}).get("idle_endpoints"):
        return None
    return (
        "no rollout has a turn, so nothing can train; a program that never asks the policy: "
        "rollout doctor CONFIG --agent"
    )
