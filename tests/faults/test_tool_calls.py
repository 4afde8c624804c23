"""Whole runs with eight parallel tool calls: one hangs in a thread, one raises, and one exits."""

from pathlib import Path
from typing import Any

from tests.faults.launched import LaunchHarness, worker_logs

TOOL_CALLS = Path(__file__).parent / "tool_calls.yaml"


def require_all_scored(report: dict[str, Any]) -> None:
    assert (report["rollouts"], report["status"]) == (16, {"ok": 16})
    assert report["reward_mean"] == 1.0


def test_a_launch_answers_every_call_and_ends_although_threads_hang(world: LaunchHarness) -> None:
    launched = world.launch(TOOL_CALLS, {}, "--workers=2")
    report = launched.report(seconds=120)
    require_all_scored(report)
    assert (report["deaths"], report["retries"]) == (0, 0)
    events = [
        entry
        for entry in worker_logs(launched)
        if entry["event"] in ("a tool raised an error", "a tool did not end in time")
    ]
    assert sorted(entry["tool"] for entry in events) == sorted(["hang", "fail", "leave"] * 16)
    assert any("ValueError: not today" in entry.get("exception", "") for entry in events)
    assert world.leftover_processes() == []


def test_a_run_answers_every_call_and_ends_although_threads_hang(world: LaunchHarness) -> None:
    report = world.run(TOOL_CALLS, {}).report(seconds=120)
    require_all_scored(report)
    assert report["trainer"]["violations"] == 0
