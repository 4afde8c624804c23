"""Converts finished records of schema versions before 1.03, which did not have limits.

In these records, the status `truncated` means that a limit stopped the rollout, with or without a score.
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
    """Change an old finished record in place, if a limit stopped the rollout: set `status`, `limit` and `reward`."""
    error = fields.get("error")
    error_type = error.get("type") if isinstance(error, dict) else None
    status = fields.get("status")
    if not isinstance(status, str) or (status, error_type) not in _ENDINGS:
        return
    new_status, limit = _ENDINGS[status, error_type]
    fields["status"], fields["limit"] = new_status.value, limit.value
    if new_status is RolloutStatus.UNSCORED:
        fields["reward"] = None  # the old record has the reward 0, although there is no score
