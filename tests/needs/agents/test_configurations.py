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
_GROUP_SIZE = 2
_SIGN_COLOR = "orange"
"""The colour in the picture of the repository shop_sign."""


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


def run_configuration(configuration: Configuration, directory: Path) -> dict[str, Any]:
    """Run a configuration with fewer rollouts, and return the report."""
    settings = {
        "environment.executable": configuration.executable,
        "tasks.group_size": _GROUP_SIZE,
        "run.directory": directory / "runs",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "rollout", "run", f"configs/{configuration.name}.yaml", "--json"]
        + [f"--set={key}={value}" for key, value in settings.items()],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=_RUN_TIMEOUT,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-5000:]
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


def right_edit(trajectory: Trajectory) -> bool:
    """Return whether the script sampled the right edit in a rollout."""
    assert trajectory.started is not None
    repository = trajectory.started.task["data"]["repository"]
    mend = MENDS.get(f"{repository}.py")
    right = mend.right if mend is not None else _SIGN_COLOR
    calls = [call for step in main_steps(trajectory) for call in step.nodes[-1].message.get("tool_calls", [])]
    edits = [arguments for call in calls if ("sed -i" in (arguments := str(call)) or "newString" in arguments)]
    assert len(edits) == 1
    return right in edits[0]


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda one: one.name)
def test_a_configuration_runs_as_it_is(configuration: Configuration, tmp_path: Path) -> None:
    report = run_configuration(configuration, tmp_path)
    assert report["status"] == {"ok": _GROUP_SIZE * configuration.tasks}
    gateway = report["gateway"]
    assert gateway["bridged"] == gateway["turns"] - gateway["first"]
    trajectories = asyncio.run(read_trajectories(report))
    assert len(trajectories) == _GROUP_SIZE * configuration.tasks
    for trajectory in trajectories:
        require_token_exact(trajectory)
        assert trajectory.reward == float(right_edit(trajectory))
        assert list(trajectory.root_kinds.values()) == [RootKind.AUXILIARY] * configuration.titles
    pictures = [trajectory for trajectory in trajectories if trajectory.images]
    assert len(pictures) == _GROUP_SIZE * (configuration.tasks - len(MENDS))
