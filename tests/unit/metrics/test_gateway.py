"""What the worker exports about the requests of programs."""

from prometheus_client import generate_latest

from rollout.metrics.worker import WorkerMetrics
from rollout.records.gateway_counts import RequestOutcome
from tests.unit.metrics.scraping import Samples, parse_metrics


def exported(metrics: WorkerMetrics) -> Samples:
    return parse_metrics(generate_latest(metrics.registry).decode())


def test_requests_are_counted_by_dialect_and_outcome() -> None:
    metrics = WorkerMetrics("coins")
    metrics.record_gateway_request("chat", RequestOutcome.OK, 0.2)
    metrics.record_gateway_request("chat", RequestOutcome.REFUSED, 0.0)
    metrics.record_gateway_request("messages", RequestOutcome.OK, 3.0)
    metrics.record_gateway_request("messages", RequestOutcome.OK, 4.0)
    assert exported(metrics)["rollout_gateway_requests_total"] == {
        ("chat", "coins", "ok"): 1,
        ("chat", "coins", "refused"): 1,
        ("messages", "coins", "ok"): 2,
    }


def test_seconds_are_those_of_the_requests_that_the_policy_answered() -> None:
    metrics = WorkerMetrics("coins")
    metrics.record_gateway_request("messages", RequestOutcome.OK, 3.0)
    for outcome in set(RequestOutcome) - {RequestOutcome.OK}:
        metrics.record_gateway_request("messages", outcome, 100.0)
    found = exported(metrics)
    assert found["rollout_gateway_request_seconds_sum"] == {("messages", "coins"): 3.0}
    assert found["rollout_gateway_request_seconds_count"] == {("messages", "coins"): 1}


def test_echoes_and_joined_requests_are_counted_by_dialect() -> None:
    metrics = WorkerMetrics("coins")
    for dialect, echo in (("chat", "exact"), ("chat", "exact"), ("responses", "foreign")):
        metrics.record_gateway_echo(dialect, echo)
    metrics.record_gateway_retry("responses")
    found = exported(metrics)
    assert found["rollout_gateway_echoes_total"] == {
        ("chat", "exact", "coins"): 2,
        ("responses", "foreign", "coins"): 1,
    }
    assert found["rollout_gateway_retries_total"] == {("responses", "coins"): 1}


def test_a_connection_counts_until_it_is_closed_even_by_an_error() -> None:
    metrics = WorkerMetrics("coins")

    def open_connections() -> float:
        return exported(metrics)["rollout_gateway_connections"]["coins",]

    try:
        with metrics.count_gateway_connection():
            with metrics.count_gateway_connection():
                assert open_connections() == 2
            assert open_connections() == 1
            raise ConnectionResetError
    except ConnectionResetError:
        assert open_connections() == 0
