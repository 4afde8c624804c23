"""`configs/program.yaml` runs as it is: an agent over the openai SDK plays, and a command scores what it wrote."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rollout.records.conversations import Echo
from rollout.records.kinds import PromptSource
from rollout.trainer import Trajectory, check, open_archive
from tests.conftest import ROOT
from tests.unit.cli.in_process import set_options

CONFIG = "configs/program.yaml"
AGENT = "examples/program/agent.py"


def run_rollout(command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of rollout from the root of the repository."""
    line = [sys.executable, "-m", "rollout", command, *arguments, "--json"]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def run_configuration(directory: Path, *settings: str) -> tuple[int, dict[str, Any]]:
    """Play four rollouts with a few changed settings; return the exit code and the report."""
    changes = ("tasks.count=2", "tasks.group_size=2", f"run.directory={directory}", *settings)
    ended = run_rollout("run", CONFIG, *set_options(*changes))
    assert ended.stdout, ended.stderr
    return ended.returncode, json.loads(ended.stdout)


async def read_trajectories(run_directory: str) -> Sequence[Trajectory]:
    async with open_archive(run_directory) as reader:
        return [trajectory async for trajectory in reader]


@pytest.mark.parametrize(("temperature", "reward"), [(0.0, 1.0), (1.0, None)])
def test_the_agent_plays_token_exact(tmp_path: Path, temperature: float, reward: float | None) -> None:
    code, report = run_configuration(tmp_path, f"engine.sampling.temperature={temperature}")
    assert (code, report["status"]) == (0, {"ok": 4})
    assert reward is None or report["reward_mean"] == reward
    trajectories = asyncio.run(read_trajectories(report["run_dir"]))
    assert len(trajectories) == 4
    for trajectory in trajectories:
        assert check(trajectory) == []
        first, *others = trajectory.steps
        assert (first.echo, first.prompt_source) == (None, PromptSource.FIRST)
        assert [step.echo for step in others] == [Echo.EXACT] * len(others)
        assert [step.prompt_source for step in others] == [PromptSource.BRIDGE] * len(others)
    if temperature == 0.0:
        assert {len(trajectory.steps) for trajectory in trajectories} == {4}


def test_inspect_shows_what_the_agent_printed(tmp_path: Path) -> None:
    _, report = run_configuration(tmp_path, "engine.sampling.temperature=0")
    document = json.loads(run_rollout("inspect", report["run_dir"], "000000.0").stdout)
    output, score_output = (Path(artifact["path"]) for artifact in document["artifacts"])
    assert output.read_text().splitlines()[-1].startswith("The result is ")
    assert score_output.read_text() == "1\n"


def test_a_missing_sdk_is_one_clear_error(tmp_path: Path) -> None:
    # Without site-packages, there is no openai.
    command = json.dumps(["{python}", "-S", "{config_dir}/../examples/program/agent.py", "{task.question}"])
    code, report = run_configuration(tmp_path, f"environment.command={command}")
    assert (code, report["status"]) == (1, {"failed": 4})
    [error] = report["errors"]
    assert error["rollouts"] == 4
    assert "No module named 'openai'" in error["message"]


def test_the_agent_is_about_thirty_lines() -> None:
    code = (ROOT / AGENT).read_text().rpartition("import OpenAI\n")[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 35
