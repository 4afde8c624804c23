"""Upgrades last records from before schema 1.03, which introduced limits.

Until then, the status `truncated` meant that a limit had stopped a rollout, with or without a score.
"""

from typing import Any

from rollout.records.endings import RolloutLimit, RolloutStatus

_ENDINGS = {
    ("truncated", None): (RolloutStatus.OK, RolloutLimit.TOKENS),
    ("truncated", "ContextExhausted"): (RolloutStatus.UNSCORED, RolloutLimit.CONTEXT),
    ("truncated", "StragglerCut"): (RolloutStatus.UNSCORED, RolloutLimit.TIME),
    ("failed", "RolloutTimeout"): (RolloutStatus.FAILED, RolloutLimit.TIME),
}


def upgrade_ending(fields: dict[str, Any]) -> None:
    """Replace `status` and `reward`, and add `limit`, if a limit had stopped the rollout."""
    error = fields.get("error")
    error_type = error.get("type") if isinstance(error, dict) else None
    status = fields.get("status")
    if not isinstance(status, str) or (status, error_type) not in _ENDINGS:
        return
    new_status, limit = _ENDINGS[status, error_type]
    fields["status"], fields["limit"] = new_status.value, limit.value
    if new_status is RolloutStatus.UNSCORED:
        fields["reward"] = None  # it was 0, and the rollout trained
