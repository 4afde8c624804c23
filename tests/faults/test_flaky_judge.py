"""A judge that fails 20 % of its calls: every rollout is scored in the end, and none trains twice."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rollout.trainer import open_archive
from tests.faults.flaky_judge import FlakyJudge, serve_flaky_judge
from tests.faults.launched import LaunchHarness

CONFIG = Path(__file__).parent / "flaky_judge.yaml"
COUNT = 60


def play(world: LaunchHarness, judge: FlakyJudge, command: tuple[str, ...]) -> dict[str, Any]:
    """What a command that plays all rollouts says at its end."""
    settings = {"run.directory": world.directory / "runs", "environment.judge_url": judge.url}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "rollout", command[0], str(CONFIG), *command[1:], *options, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    world.processes.append(process)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    report: dict[str, Any] = json.loads(out)
    return report


async def read_all(run_dir: Path) -> list[tuple[str, str, float | None]]:
    """The rollout, the status and the reward of everything that a trainer gets."""
    async with open_archive(run_dir) as reader:
        return [(trajectory.rollout, str(trajectory.status), trajectory.reward) async for trajectory in reader]


@pytest.mark.parametrize("command", [("run",), ("launch", "--workers=2")], ids=["run", "launch"])
def test_every_rollout_is_scored_once(world: LaunchHarness, command: tuple[str, ...]) -> None:
    with serve_flaky_judge() as judge:
        report = play(world, judge, command)
    assert report["status"] == {"ok": COUNT}
    assert judge.failures > 0
    assert report["retries"] == judge.failures
    assert sum(judge.calls.values()) == COUNT + judge.failures
    run_dir = Path(report["run_dir"])
    trained = asyncio.run(read_all(run_dir))
    assert {(status, reward) for _, status, reward in trained} == {("ok", 0.5)}
    assert set(Counter(rollout for rollout, _, _ in trained).values()) == {1}
    assert len(trained) == COUNT
    logs = "".join(path.read_text() for path in run_dir.rglob("*.jsonl"))
    assert f"the judge at {judge.url} gave no answer as 'a-judge' in 1 try: " in logs
    assert "sk-flaky" not in logs
