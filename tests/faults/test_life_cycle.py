"""Environments release their resources: `close` after every attempt, `shared` when the worker ends. Also `Retry`."""

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.faults.launched import LaunchHarness, LaunchProcess, worker_logs

LIFE_CYCLE = Path(__file__).parent / "life_cycle.yaml"
STATUS_OF = {
    "scores": "ok",
    "raises": "failed",
    "asks_again_once": "ok",
    "asks_again": "failed",
    "hangs": "failed",
    "stays_until_closed": "failed",
    "holds": "failed",
    "exits": "failed",
    "cancels_its_task": "failed",
}


@pytest.fixture
def held(tmp_path: Path) -> Path:
    directory = tmp_path / "held"
    directory.mkdir()
    return directory


def settings(held: Path, does: list[str], count: int | None = None) -> dict[str, object]:
    return {
        "environment.directory": held,
        "tasks.does": f"[{','.join(does)}]",
        "tasks.count": count or len(does),
        "tasks.group_size": 1,
        "run.max_failed": 1.0,
        "worker.rollout_timeout": 15,
        "worker.block_timeout": 2,
    }


def still_held(held: Path) -> list[str]:
    return sorted(path.name for path in held.iterdir() if path.name != "begun")


def begun(held: Path) -> list[str]:
    path = held / "begun"
    return path.read_text().split() if path.exists() else []


def outcomes(run_dir: str) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in Path(run_dir).glob("claims/life_cycle/*.done")]
    return {outcome["group"].partition("-")[2]: outcome for outcome in found}


def check_endings(held: Path, report: dict[str, Any], does: list[str]) -> None:
    assert report["status"] == Counter(STATUS_OF.get(name, "failed") for name in does)
    assert still_held(held) == []
    ended = outcomes(report["run_dir"])
    assert ended["asks_again"]["error"] == {"type": "Retry", "message": "flaky judge 3"}
    assert ended["asks_again_once"]["attempt"] == 2
    assert report["retries"] == 3
    assert len(begun(held)) == len(does) + 3


def test_a_run_releases_every_file_however_the_attempt_ends(world: LaunchHarness, held: Path) -> None:
    does = list(STATUS_OF)
    report = world.run(LIFE_CYCLE, settings(held, does)).report(seconds=120)
    check_endings(held, report, does)
    assert report["trainer"]["violations"] == 0
    assert report["turns"] == len(does)  # the turns of the first attempt do not count


def test_a_launch_releases_every_file_however_the_attempt_ends(world: LaunchHarness, held: Path) -> None:
    does = [*STATUS_OF, "hangs_in_a_thread"]
    launched = world.launch(LIFE_CYCLE, settings(held, does), "--workers=1")  # one, so that it counts all attempts
    check_endings(held, launched.report(seconds=120), does)


def test_only_a_killed_worker_leaves_files(world: LaunchHarness, held: Path) -> None:
    long = settings(held, ["plays_long"], 120) | {"worker.concurrency": 4}
    launched = world.launch(LIFE_CYCLE, long, "--workers=2")
    launched.wait_until(lambda: len(launched.live_workers()) == 2 and len(begun(held)) > 12)
    victim = launched.live_workers()[0]
    os.kill(victim, signal.SIGKILL)
    report = launched.report(seconds=120)
    assert report["status"] == {"ok": 120}
    assert report["deaths"] == 1
    assert {name.split("-")[1] for name in still_held(held)} == {str(victim)}
    assert f"shared-{victim}" in still_held(held)
    attempts_lost = len(still_held(held)) - 1
    assert report["retries"] >= attempts_lost > 0


@pytest.mark.parametrize("does", ["plays_long", "hangs"])
def test_a_drain_closes_the_shared_resources(world: LaunchHarness, held: Path, does: str) -> None:
    long = settings(held, [does], 400) | {"worker.concurrency": 4, "worker.rollout_timeout": 600, "worker.grace": 2}
    launched = world.launch(LIFE_CYCLE, long, "--workers=2")
    launched.wait_until(lambda: len(launched.live_workers()) == 2 and len(begun(held)) >= 8)
    assert len([name for name in still_held(held) if name.startswith("shared-")]) == 2
    launched.process.send_signal(signal.SIGTERM)
    report = launched.report(seconds=60)
    assert still_held(held) == []
    assert report["deaths"] == 0
    assert _warnings(launched) == []


def test_an_interrupted_run_closes_everything(world: LaunchHarness, held: Path) -> None:
    started = world.run(LIFE_CYCLE, settings(held, ["scores", "hangs"]))
    started.wait_until(lambda: len(begun(held)) == 2 and len(still_held(held)) == 2)
    started.process.send_signal(signal.SIGTERM)
    assert started.report(code=130, seconds=30)["status"] == {"ok": 1, "abandoned": 1}
    assert still_held(held) == []


def test_a_run_ends_with_the_users_lines_if_shared_cannot_begin(world: LaunchHarness, held: Path) -> None:
    keys = settings(held, ["scores"]) | {"environment.shared": "cannot_begin"}
    process = world.run(LIFE_CYCLE, keys).process
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1, message
    assert f"HoldsAFile.shared ({LIFE_CYCLE.with_suffix('.py')}, line " in message
    assert "ConnectionRefusedError: no sandboxes" in message
    assert "resources.py" not in message
    assert begun(held) == []


def test_a_launch_ends_with_the_reason_if_shared_cannot_begin(world: LaunchHarness, held: Path) -> None:
    keys = settings(held, ["scores"]) | {"environment.shared": "cannot_begin", "worker.restarts": 1}
    error = world.launch(LIFE_CYCLE, keys, "--workers=1").report(code=1, seconds=60)["error"]
    assert "the workers of life_cycle died more times than worker.restarts allows" in error
    assert "ended before it yielded" in error
    assert "ConnectionRefusedError: no sandboxes" in error


def test_a_run_ends_with_the_reason_if_shared_breaks(world: LaunchHarness, held: Path) -> None:
    keys = settings(held, ["hangs"]) | {"environment.shared": "breaks"}
    report = world.run(LIFE_CYCLE, keys).report(code=1, seconds=60)
    assert report["status"] == {"abandoned": 1}
    assert "HoldsAFile.shared (" in report["error"]
    assert "ConnectionResetError: the pool died" in report["error"]
    assert still_held(held) == []


def _warnings(launched: LaunchProcess) -> list[dict[str, Any]]:
    return [entry for entry in worker_logs(launched) if entry["level"] == "warning"]
