"""Eight parallel tool calls, of which one hangs in a thread, one raises and one exits, over whole runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.faults.launched import LaunchHarness, worker_logs

TOOL_CALLS = Path(__file__).parent / "tool_calls.yaml"


def require_all_scored(report: dict[str, Any]) -> None:
    assert (report["rollouts"], report["status"]) == (16, {"ok": 16})
    assert report["reward_mean"] == 1.0


def test_a_launch_answers_every_call_and_ends_with_the_threads_that_hang(world: LaunchHarness) -> None:
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


def test_a_run_answers_every_call_and_ends_with_the_threads_that_hang(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rollout", "run", str(TOOL_CALLS), "--set", f"run.directory={tmp_path}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    require_all_scored(report)
    assert report["trainer"]["violations"] == 0
