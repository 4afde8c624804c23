"""The examples run unchanged, get the expected scores, and leave exact records."""

import json
from pathlib import Path
from typing import Any

import pytest

from examples.compaction.environment import Compaction, CompactionSettings, CompactionTasks
from examples.subagents.environment import Subagents, SubagentsSettings, SubagentsTasks
from rollout import Environment, TaskSettings
from rollout.testing import embedded_policy, play
from rollout.trainer import Trajectory, check, samples
from tests.unit.cli.in_process import run_cli

EXAMPLES = ("compaction/compaction.yaml", "subagents/subagents.yaml")


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_with_its_yaml(repository: Path, tmp_path: Path, example: str) -> None:
    settings = ("tasks.count=2", "engine.sampling.temperature=0", f"run.directory={tmp_path}")
    arguments = [str(repository / "examples" / example), *(part for one in settings for part in ("--set", one))]
    done = run_cli("run", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["status"] == {"ok": 8}
    assert report["reward_mean"] == 1.0
    assert report["trainer"]["violations"] == 0


async def play_first_task(environment: Environment, settings: TaskSettings, directory: Path) -> Trajectory:
    (task,) = environment.tasks(settings)
    async with embedded_policy(directory) as policy:
        return (await play(environment, task, policy=policy)).trajectory


async def test_compaction_forks_after_the_system_message_and_pictures_return(tmp_path: Path) -> None:
    tasks = CompactionTasks(count=1, pictures=7)
    trajectory = await play_first_task(Compaction(CompactionSettings(keep=3)), tasks, tmp_path)
    assert check(trajectory) == []
    sources = [step.prompt_source for step in trajectory.steps]
    assert sources == ["first", "bridge", "bridge", "compaction", "bridge", "bridge", "compaction", "bridge"]
    assert len(trajectory.images) == 7
    assert [len(sample.images) for sample in samples(trajectory)] == [3, 3, 8]


async def test_each_helper_sees_its_own_picture_and_the_votes_share_their_question(tmp_path: Path) -> None:
    tasks = SubagentsTasks(count=1, pictures=3)
    trajectory = await play_first_task(Subagents(SubagentsSettings(votes=3)), tasks, tmp_path)
    assert check(trajectory) == []
    assert sorted(len(sample.images) for sample in samples(trajectory)) == [1, 1, 1, 6, 6, 6]
    sampled = sum(len(node.run.logprobs) for node in trajectory.nodes)
    assert sum(int(sample.mask.sum()) for sample in samples(trajectory)) == sampled
    assert len([node for node in trajectory.nodes if "Look again" in str(node.message["content"])]) == 1
