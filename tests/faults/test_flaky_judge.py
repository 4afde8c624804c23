"""A judge fails 20 % of its calls: every rollout is scored in the end, and none trains twice."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from rollout.trainer import open_archive
from tests.faults.flaky_judge import serve_flaky_judge
from tests.faults.launched import LaunchHarness

CONFIG = Path(__file__).parent / "flaky_judge.yaml"
COUNT = 60


async def read_all(run_dir: Path) -> list[tuple[str, str, float | None]]:
    """Return the rollout, the status and the reward of each trajectory."""
    async with open_archive(run_dir) as reader:
        return [(trajectory.rollout, str(trajectory.status), trajectory.reward) async for trajectory in reader]


@pytest.mark.parametrize("command", ["run", "launch"])
def test_every_rollout_is_scored_once(world: LaunchHarness, command: str) -> None:
    with serve_flaky_judge() as judge:
        settings = {"environment.judge_url": judge.url}
        started = world.run(CONFIG, settings) if command == "run" else world.launch(CONFIG, settings, "--workers=2")
        report = started.report(seconds=120)
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
    assert f"the judge at {judge.url} gave no answer from 'a-judge' in 1 try: " in logs
    assert "sk-flaky" not in logs
