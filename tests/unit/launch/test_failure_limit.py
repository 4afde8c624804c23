"""The limit of failed rollouts: when it stops a run, and its error text."""

from collections.abc import Mapping

import pytest

from rollout.launch.failure_limit import FailureLimit, TooManyFailures


def stop_reason(
    max_failed: int | float | None, counts: Mapping[str, int], earlier: Mapping[str, int] | None = None
) -> str | None:
    """Return why the run stops, or None if it continues."""
    try:
        FailureLimit("coin", max_failed, earlier or {}).check(counts)
    except TooManyFailures as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("max_failed", "counts", "stops"),
    [
        (None, {"failed": 15}, False),
        (None, {"failed": 16}, True),
        (None, {"failed": 16, "abandoned": 48}, True),
        (None, {"failed": 500, "ok": 1}, False),
        (None, {"failed": 500, "unscored": 1}, False),
        (0, {"failed": 1, "ok": 3}, True),
        (0, {"ok": 100}, False),
        (5, {"failed": 5}, False),
        (5, {"failed": 6, "ok": 1000}, True),
        (0.5, {"failed": 15}, False),
        (0.5, {"failed": 8, "ok": 8}, False),
        (0.5, {"failed": 9, "ok": 7}, True),
        (0.0, {"failed": 1, "ok": 15}, True),
        (1.0, {"failed": 100_000}, False),
    ],
)
def test_a_run_stops_at_its_limit_of_failed_rollouts(
    max_failed: int | float | None, counts: dict[str, int], stops: bool
) -> None:
    assert (stop_reason(max_failed, counts) is not None) == stops


def test_failures_before_the_launch_are_not_counted() -> None:
    earlier = {"failed": 20, "ok": 5}
    assert stop_reason(None, {"failed": 35, "ok": 5}, earlier) is None
    assert "all 16 rollouts that have ended" in (stop_reason(None, {"failed": 36, "ok": 5}, earlier) or "")


@pytest.mark.parametrize(
    ("max_failed", "counts", "expected"),
    [
        (
            None,
            {"failed": 17},
            "too many rollouts of coin failed: all 17 rollouts that have ended. run.max_failed sets",
        ),
        (2, {"failed": 3, "ok": 4}, "3 of 7 rollouts that have ended. run.max_failed allows 2 (1.0"),
        (0.25, {"failed": 6, "ok": 14}, "6 of 20 rollouts that have ended. run.max_failed allows a share of 0.25 (1.0"),
    ],
)
def test_the_error_names_environment_counts_and_key(
    max_failed: int | float | None, counts: dict[str, int], expected: str
) -> None:
    reason = stop_reason(max_failed, counts)
    assert reason is not None
    assert expected in reason
    assert "(1.0: no limit)" in reason
