"""Workers' samples added up: counters of the dead still count, gauges do not."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.registry import CollectorRegistry

from rollout.metrics import catalogue
from rollout.metrics.totals import ChangeTracker, MetricTotals, sum_metrics
from rollout.worker.link import Heartbeat, decode_report, encode_report


def values(*tallies: MetricTotals) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for metric in sum_metrics(tallies)
        for sample in metric.samples
    }


def through_json(changes: ChangeTracker) -> Any:
    return orjson.loads(orjson.dumps(changes.take_changes()))


class ReportingWorker:
    """A worker's registry, and what its supervisor has of it."""

    def __init__(self, totals: MetricTotals) -> None:
        registry = CollectorRegistry()
        self.turns = catalogue.TURNS.counter(registry)
        self.seconds = catalogue.ENGINE_REQUEST_SECONDS.histogram(registry)
        self.ejected = catalogue.ENGINE_EJECTED.gauge(registry)
        self.version = catalogue.POLICY_VERSION.gauge(registry)
        self._changes = ChangeTracker(registry)
        self._totals = totals

    def report(self) -> None:
        self._totals.add_changes(through_json(self._changes))


def test_only_what_changed_is_told() -> None:
    registry = CollectorRegistry()
    turns = catalogue.TURNS.counter(registry)
    changes = ChangeTracker(registry)
    turns.labels("a", "bridge").inc()
    turns.labels("a", "first").inc()
    assert changes.take_changes() == {
        "rollout_turns_total": [
            ([("environment", "a"), ("prompt", "bridge")], 1.0),
            ([("environment", "a"), ("prompt", "first")], 1.0),
        ]
    }
    turns.labels("a", "first").inc()
    assert changes.take_changes() == {"rollout_turns_total": [([("environment", "a"), ("prompt", "first")], 2.0)]}
    assert changes.take_changes() == {}


def test_samples_cross_the_line_in_a_beat() -> None:
    registry = CollectorRegistry()
    catalogue.ROLLOUTS_IN_FLIGHT.gauge(registry).labels("a").set(3)
    heard = decode_report(encode_report(Heartbeat(metrics=ChangeTracker(registry).take_changes())))
    assert isinstance(heard, Heartbeat)
    totals = MetricTotals()
    totals.add_changes(heard.metrics)
    assert values(totals) == {("rollout_rollouts_in_flight", ("a",)): 3.0}


def test_a_dead_workers_counters_count_and_its_gauges_do_not() -> None:
    totals = MetricTotals()
    first = ReportingWorker(totals)
    first.turns.labels("a", "bridge").inc(5)
    first.seconds.labels("a", "http://e", "ok").observe(0.2)
    first.ejected.labels("a", "http://e").set(1)
    first.report()
    totals.end_worker()
    assert ("rollout_engine_ejected", ("a", "http://e")) not in values(totals)
    second = ReportingWorker(totals)
    second.turns.labels("a", "bridge").inc(2)
    second.seconds.labels("a", "http://e", "ok").observe(20)
    second.report()
    found = values(totals)
    assert found["rollout_turns_total", ("a", "bridge")] == 7
    assert found["rollout_engine_request_seconds_count", ("a", "http://e", "ok")] == 2
    assert found["rollout_engine_request_seconds_bucket", ("a", "http://e", "ok", "0.25")] == 1
    assert found["rollout_engine_request_seconds_bucket", ("a", "http://e", "ok", "+Inf")] == 2


def test_versions_are_not_added_up() -> None:
    tallies = [MetricTotals(), MetricTotals()]
    for tally, version in zip(tallies, (3, 4), strict=True):
        source = ReportingWorker(tally)
        source.version.labels("a").set(version)
        source.ejected.labels("a", "http://e").set(1)
        source.report()
    found = values(*tallies)
    assert found["rollout_policy_version", ("a",)] == 4
    assert found["rollout_engine_ejected", ("a", "http://e")] == 2


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["turn", "tell", "die"])), max_size=60))
def test_whatever_was_told_is_counted_once(happenings: list[tuple[int, str]]) -> None:
    tallies = [MetricTotals() for _ in range(3)]
    sources = [ReportingWorker(tally) for tally in tallies]
    unreported = [0.0] * 3
    reported = 0.0
    for worker, event in happenings:
        match event:
            case "turn":
                sources[worker].turns.labels("a", "bridge").inc()
                unreported[worker] += 1
            case "tell":
                sources[worker].report()
                reported, unreported[worker] = reported + unreported[worker], 0.0
            case _:
                tallies[worker].end_worker()
                sources[worker], unreported[worker] = ReportingWorker(tallies[worker]), 0.0
    assert values(*tallies).get(("rollout_turns_total", ("a", "bridge")), 0.0) == reported


@pytest.mark.parametrize("family", list(catalogue.all_metrics()), ids=lambda family: family.name)
def test_any_family_can_be_summed(family: catalogue.MetricSpec) -> None:
    tally = MetricTotals()
    suffix = "_count" if family.metric_type is catalogue.MetricType.HISTOGRAM else ""
    tally.add_changes({family.name + suffix: [([(label, "x") for label in family.label_names], 2.0)]})
    (metric,) = sum_metrics([tally, tally])
    assert (metric.name, metric.type) == (family.base_name, family.metric_type.value)
    assert metric.samples[0].value == (2.0 if family.combine == "max" else 4.0)
