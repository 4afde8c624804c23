"""The totals of outcomes."""

from rollout.rundir.outcomes import mean_by_name


def test_a_metric_is_averaged_over_the_scores_that_have_it() -> None:
    assert mean_by_name([{"b": 1.0, "a": 0.0}, {}, {"a": 1.0}]) == {"a": 0.5, "b": 1.0}
    assert mean_by_name([]) == {}
