"""Rollouts fill their context, under `rollout run` and `rollout launch`: the environment scores some of them."""

import json
import sys
from pathlib import Path

import anyio
import pytest

from rollout import RolloutLimit
from rollout.records.endings import RolloutStatus
from rollout.trainer import Trajectory, check, open_archive

ENVIRONMENT = '''
from rollout import MultiTurnEnvironment, Score, Turn


class Endless(MultiTurnEnvironment):
    """Asks until the context is full; every second task scores a full context."""

    async def reset(self, task):
        self.task = task
        return [{"role": "user", "content": "Say something."}]

    async def step(self, reply):
        return Turn([{"role": "user", "content": "And something else, please."}], reward=0.5)

    async def truncated(self, conversation):
        answers = sum(message["role"] == "assistant" for message in conversation)
        return Score(float(answers)) if self.task.index % 2 else None
'''

CONFIG = """
environment: {class: "endless:Endless"}
tasks: {count: 4, group_size: 2}
model: {name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}
engine: {embedded: {max_model_len: 400}}
run: {name: endless, directory: runs}
"""


@pytest.mark.parametrize("command", [("run",), ("launch", "--workers", "2")], ids=["run", "launch"])
async def test_a_full_context_is_scored_by_its_environment_or_unscored(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "endless.py").write_text(ENVIRONMENT)
    (tmp_path / "endless.yaml").write_text(CONFIG)
    program, *options = command
    arguments = [sys.executable, "-m", "rollout", program, "endless.yaml", *options, "--json"]
    with anyio.fail_after(120):
        done = await anyio.run_process(arguments, cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["status"] == {"ok": 4, "unscored": 4}
    assert report["limits"] == {"context": 8}
    async with open_archive(Path(report["run_dir"])) as reader:
        ended = [trajectory async for trajectory in reader]
    assert len(ended) == 8
    for trajectory in ended:
        assert_ended_by_the_context(trajectory)


def assert_ended_by_the_context(trajectory: Trajectory) -> None:
    turns = len(trajectory.steps)
    assert turns > 1
    assert trajectory.limit is RolloutLimit.CONTEXT
    assert check(trajectory) == []
    assert trajectory.started is not None
    if trajectory.started.task["index"] % 2:
        assert (trajectory.status, trajectory.reward) == (RolloutStatus.OK, float(turns))
        assert trajectory.turn_rewards == dict.fromkeys(range(turns), 0.5)
    else:
        assert (trajectory.status, trajectory.reward) == (RolloutStatus.UNSCORED, None)
