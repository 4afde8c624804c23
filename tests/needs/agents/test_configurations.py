"""The configurations of coding agents run as they are: the agents mend repositories, and tests score them."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from examples.coding_agents.policy import MENDS
from rollout.records.conversations import RootKind
from rollout.trainer import Trajectory
from tests.conftest import ROOT as REPOSITORY
from tests.needs.agents import coding_clis
from tests.needs.agents.token_exactness import main_steps, read_trajectories, require_token_exact

_RUN_TIMEOUT = 300.0
_SIGN = ("grey", "orange")
"""The text in shop_sign.py that is wrong, and the colour in its picture."""


@dataclass(frozen=True)
class Configuration:
    """A configuration.

    Attributes:
        name: the name of its file.
        executable: the program of its agent.
        tasks: how many tasks it has.
        titles: how many requests for a title a rollout has.
    """

    name: str
    executable: Path
    tasks: int
    titles: int = 0


CONFIGURATIONS = [
    Configuration("codex", coding_clis.CODEX, tasks=4),
    Configuration("opencode", coding_clis.OPENCODE, tasks=4, titles=1),
    Configuration("mini_swe_agent", coding_clis.MINI_SWE_AGENT, tasks=3),
]
every_configuration = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda one: one.name)


def run_rollout(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the command rollout, with nothing installed but what `directory` has."""
    return subprocess.run(
        [sys.executable, "-m", "rollout", *arguments, "--set", f"run.directory={directory / 'runs'}"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=_RUN_TIMEOUT,
    )


def right_edit(trajectory: Trajectory) -> bool:
    """Return whether the script sampled the right edit in a rollout."""
    assert trajectory.started is not None
    repository = trajectory.started.task["data"]["repository"]
    mend = MENDS.get(f"{repository}.py")
    right = mend.right if mend is not None else _SIGN[1]
    calls = [call for step in main_steps(trajectory) for call in step.nodes[-1].message.get("tool_calls", [])]
    edits = [arguments for call in calls if ("sed -i" in (arguments := str(call)) or "newString" in arguments)]
    assert len(edits) == 1
    return right in edits[0]


@every_configuration
def test_a_configuration_runs_as_it_is(configuration: Configuration, tmp_path: Path) -> None:
    ended = run_rollout(
        "run",
        f"configs/{configuration.name}.yaml",
        "--json",
        f"--set=environment.executable={configuration.executable}",
        "--set=tasks.group_size=2",
        directory=tmp_path,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-5000:]
    report: dict[str, Any] = json.loads(ended.stdout)
    assert report["status"] == {"ok": 2 * configuration.tasks}
    gateway = report["gateway"]
    assert gateway["bridged"] == gateway["turns"] - gateway["first"]
    trajectories = asyncio.run(read_trajectories(report))
    assert len(trajectories) == 2 * configuration.tasks
    for trajectory in trajectories:
        require_token_exact(trajectory)
        assert trajectory.reward == float(right_edit(trajectory))
        assert list(trajectory.root_kinds.values()) == [RootKind.AUXILIARY] * configuration.titles
    pictures = [trajectory for trajectory in trajectories if trajectory.images]
    assert len(pictures) == 2 * (configuration.tasks - len(MENDS))


@every_configuration
def test_a_missing_agent_is_one_error_that_says_how_to_install_it(configuration: Configuration, tmp_path: Path) -> None:
    ended = run_rollout(
        "doctor",
        f"configs/{configuration.name}.yaml",
        f"--set=environment.executable={tmp_path / 'no'}",
        directory=tmp_path,
    )
    assert ended.returncode != 0
    agent = ended.stdout + ended.stderr
    assert "Traceback" not in agent
    [line] = [line for line in agent.splitlines() if "was not found" in line]
    assert " install " in line
