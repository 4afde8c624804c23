"""The totals of outcomes."""

import random
import threading
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rollout.rundir.claims import Claims, Outcome
from rollout.rundir.outcomes import OutcomeTotals, RunOutcomes


def outcome(rollout: str = "r", **fields: Any) -> Outcome:
    return Outcome(**{"rollout": rollout, "group": "g", "attempt": 1, "status": "ok", **fields})


def totals_of(*outcomes: Outcome) -> OutcomeTotals:
    totals = OutcomeTotals()
    for ended in outcomes:
        totals.add(ended)
    return totals


def record(claims: Claims, ended: Outcome) -> None:
    claims.claim_next_attempt(ended.rollout)
    claims.record_outcome(ended)


def failed(rollout: str, message: str, line: int = 7) -> Outcome:
    traceback = f'Traceback:\n  File "game.py", line {line}, in run\nValueError: {message}'
    return outcome(rollout, status="failed", error={"type": "ValueError", "message": message}, traceback=traceback)


def test_a_report_sums_up_all_rollouts() -> None:
    work = {"turns": 2, "images": 1, "tokens": 30, "queue_bytes": 500, "retries": 1, "request_retries": 3}
    report = totals_of(
        outcome("a", reward=1.0, **work, retry_reason="no judge"),
        outcome("b", reward=0.0, **work, limit="tokens"),
        outcome("c", status="unscored", limit="context", close_failed=True),
    ).report()
    assert report == {
        "rollouts": 3,
        "status": {"ok": 2, "unscored": 1},
        "reward_mean": 0.5,
        "rewards": {},
        "metrics": {},
        **{name: 2 * count for name, count in work.items()},
        "retry_reason": "no judge",
        "close_failures": 1,
        "limits": {"tokens": 1, "context": 1},
        "prompts": {"first": 0, "bridged": 0, "rendered": {}},
        "gateway": None,
    }
    assert totals_of().report()["reward_mean"] is None


def test_a_report_has_what_happened_in_the_gateway_in_all_rollouts() -> None:
    counts = {"turns": 3, "first": 1, "bridged": 1, "exact": 1, "foreign": 1, "foreign: message inserted": 1}
    report = totals_of(outcome("a", gateway=counts), outcome("b"), outcome("c", gateway=counts)).report()["gateway"]
    assert (report["turns"], report["echoes"]["exact"], report["foreign_reasons"]) == (6, 2, {"message inserted": 2})


def test_a_report_has_the_prompts_of_all_rollouts_by_reason() -> None:
    counts = {"first": 1, "bridge": 2, "earlier_text": 3, "refused": 4}
    report = totals_of(outcome("a", prompts=counts), outcome("b"), outcome("c", prompts=counts)).report()
    assert report["prompts"] == {"first": 2, "bridged": 4, "rendered": {"refused": 8, "earlier_text": 6}}


def test_a_metric_is_averaged_over_the_scores_that_have_it() -> None:
    scores: tuple[dict[str, float], ...] = ({"b": 1.0, "a": 0.0}, {}, {"a": 1.0})
    report = totals_of(*(outcome(metrics=score, rewards=score) for score in scores)).report()
    assert report["metrics"] == report["rewards"] == {"a": 0.5, "b": 1.0}


def test_a_mean_does_not_depend_on_the_order_of_the_rollouts() -> None:
    rewards = [0.1] * 1000 + [1e16, -1e16]
    random.Random(5).shuffle(rewards)
    assert totals_of(*(outcome(reward=reward) for reward in rewards)).reward_mean == pytest.approx(
        100 / 1002, rel=1e-15
    )
    assert totals_of(*(outcome(reward=0.1) for _ in range(10))).reward_mean == 0.1


def test_an_error_is_kept_once_with_the_first_rollout_that_ended_with_it() -> None:
    totals = totals_of(failed("b", "bad"), failed("c", "bad", line=9), failed("a", "bad"), failed("d", "worse"))
    assert [(error.message, error.first_rollout, error.rollouts) for error in totals.errors.distinct()] == [
        ("bad", "a", 2),
        ("bad", "c", 1),
        ("worse", "d", 1),
    ]
    assert totals.errors.rollouts == 4


def test_the_number_of_different_errors_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.rundir.outcomes._MAX_DISTINCT_ERRORS", 2)
    totals = totals_of(*(failed(str(number), f"bad {number}") for number in range(5)), failed("6", "bad 0"))
    assert [(error.message, error.rollouts) for error in totals.errors.distinct()] == [("bad 0", 2), ("bad 1", 1)]
    assert totals.errors.rollouts == 6


def test_many_errors_of_one_status_do_not_hide_those_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.rundir.outcomes._MAX_DISTINCT_ERRORS", 2)
    unscored = (replace(failed(str(number), f"{number} tokens"), status="unscored") for number in range(3))
    totals = totals_of(*unscored, failed("z", "bad"))
    assert [error.message for error in totals.errors.distinct() if error.status == "failed"] == ["bad"]


def test_totals_can_be_read_while_another_thread_adds_outcomes() -> None:
    totals = OutcomeTotals()
    outcomes = [outcome(metrics={f"m{number}": 1.0}, reward=1.0) for number in range(2000)]
    adding = threading.Thread(target=lambda: deque(map(totals.add, outcomes), maxlen=0))
    adding.start()
    while adding.is_alive():
        report = totals.report()
        assert len(report["metrics"]) == report["rollouts"]
    adding.join()


def test_each_outcome_of_a_run_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = {name: Claims(tmp_path / name) for name in ("squares", "sums")}
    reads: list[str] = []
    read_bytes = Path.read_bytes

    def note_read(path: Path) -> bytes:
        reads.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", note_read)
    outcomes = RunOutcomes(claims)
    record(claims["squares"], failed("a", "bad"))
    outcomes.refresh(at_once=True)
    record(claims["sums"], outcome("a", reward=1.0, request_retries=2))
    outcomes.refresh(at_once=True)
    outcomes.refresh(at_once=True)
    assert len(reads) == 2
    assert outcomes.by_environment["squares"].report()["status"] == {"failed": 1}
    assert outcomes.by_environment["sums"].request_retries == outcomes.totals.request_retries == 2
    assert outcomes.totals.rollouts == 2
    assert [error.first_rollout for error in outcomes.totals.errors.distinct()] == ["squares/a"]


def test_a_call_soon_after_the_last_one_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.rundir.outcomes._PAUSE_FACTOR", 1e9)
    claims = Claims(tmp_path)
    outcomes = RunOutcomes({"squares": claims})
    outcomes.refresh()
    record(claims, outcome())
    outcomes.refresh()
    assert outcomes.totals.rollouts == 0
    outcomes.refresh(at_once=True)
    assert outcomes.totals.rollouts == 1
