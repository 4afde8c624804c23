"""The warning for a run whose programs never asked the policy."""

from typing import Any

import pytest

from rollout.rundir.missing_turns import warn_if_no_turns

IDLE = {"idle_endpoints": 2}


@pytest.mark.parametrize(
    ("totals", "is_warned"),
    [
        ({"status": {"ok": 2}, "turns": 0, "gateway": IDLE}, True),
        ({"status": {"failed": 2}, "turns": 0, "gateway": IDLE}, True),
        ({"status": {"ok": 2}, "turns": 1, "gateway": IDLE}, False),
        ({"status": {"abandoned": 2}, "turns": 0, "gateway": IDLE}, False),
        ({"status": {}, "turns": 0, "gateway": None}, False),
        ({"status": {"failed": 2}, "turns": 0, "gateway": None}, False),
    ],
    ids=["scored", "failed", "with a turn", "abandoned", "none ended", "without endpoints"],
)
def test_only_programs_without_a_turn_are_a_warning(totals: dict[str, Any], is_warned: bool) -> None:
    assert (warn_if_no_turns(totals) is not None) == is_warned
