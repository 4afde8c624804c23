"""Real agent clients play through the gateway: what they send back leads to the tokens that were sampled."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.records.conversations import Echo, RootKind
from rollout.testing import play
from rollout.testing.policies import embedded_policy
from rollout.trainer import Trajectory
from tests.conftest import ROOT as REPOSITORY
from tests.faults.launched import LaunchHarness
from tests.needs.agents.clients import CLIENTS, Client
from tests.needs.agents.token_exactness import main_steps, read_trajectories, require_token_exact

LAUNCHED = [
    client
    for client in CLIENTS
    if os.environ.get("ROLLOUT_TESTS") == "full"
    or client.name in ("openai_chat", "anthropic_messages_streamed", "codex")
]
_RUN_TIMEOUT = 240.0
_POLICY = "tests.needs.agents.scripted_agent:ClientPolicy"
_CONTEXT = 120_000


def write_config(directory: Path, client: Client, **tasks: Any) -> Path:
    """Write the configuration of a run in which a client plays, and return its path."""
    config = {
        "run": {"name": "agents", "directory": str(directory / "runs")},
        "environment": {"class": "tests.needs.agents.scripted_agent:PlayClient", "client": client.name},
        "tasks": {"count": 1, "group_size": 1, **tasks},
        "model": {"name": "org/tiny-qwen3-vl", "path": "builtin:tiny", "renderer": "qwen3-vl"},
        "engine": {
            "sampling": {"max_tokens": 4096, "temperature": 0.0},
            "embedded": {"policy": _POLICY, "max_model_len": _CONTEXT},
        },
        "worker": {"rollout_timeout": 200},
    }
    path = directory / "agents.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run_rollout(command: str, config: Path, client: Client, *options: str) -> dict[str, Any]:
    """Run `rollout COMMAND` with a configuration, and return its report."""
    ended = subprocess.run(
        [sys.executable, "-m", "rollout", command, str(config), "--json", *options],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "AGENT_CLIENT": client.name},
        capture_output=True,
        text=True,
        timeout=_RUN_TIMEOUT,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-5000:]
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


def require_played(client: Client, trajectory: Trajectory) -> None:
    """Require what holds for every client: bridged turns, images in each later request, every token trained once."""
    require_token_exact(trajectory)
    main = main_steps(trajectory)
    assert len(main) >= 5
    if not client.keeps_reasoning:
        assert {step.echo for step in main[1:]} == {Echo.NORMALISED}
    assert len(main[0].nodes[-1].message["tool_calls"]) == 2
    assert main[0].nodes[-1].message["reasoning_content"]
    seen = 0
    for step in main:
        images = sum(len(node.run.images) for node in trajectory.path(step.leaf))
        assert images >= seen
        seen = images
    assert (seen >= 1) == client.shows_pictures


class _RepeatConversation(Environment):
    """Plays a recorded conversation over `Session.chat`."""

    def __init__(self, recorded: Trajectory) -> None:
        super().__init__(EnvironmentSettings())
        self._recorded = recorded

    async def run(self, task: Task, model: Model) -> Score:
        last = max(main_steps(self._recorded), key=lambda step: step.turn)
        path = self._recorded.path(last.leaf)
        tools = next(step.tools for step in self._recorded.steps if path[0].index in range(step.first, step.leaf + 1))
        conversation: list[dict[str, Any]] = []
        for node in path:
            if node.sampled:
                reply = await model.chat(conversation, tools=tools)
                conversation.append(reply.message)
            else:
                conversation.append(with_pixels(self._recorded, node.message))
        return Score(reward=1.0)


def with_pixels(trajectory: Trajectory, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded message with its images as `data:` URIs."""
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    return {**message, "content": [_with_pixels(trajectory, part) for part in content]}


def _with_pixels(trajectory: Trajectory, part: Mapping[str, Any]) -> Mapping[str, Any]:
    if part["type"] != "image":
        return part
    assert trajectory.started is not None
    path = Path(trajectory.started.assets) / trajectory.images[part["hash"]]["raw_image_id"]
    uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return {"type": "image_url", "image_url": {"url": uri}}


def sampled_path(trajectory: Trajectory) -> Sequence[list[int]]:
    """Return the token ids of each message of the main conversation."""
    last = max(main_steps(trajectory), key=lambda step: step.turn)
    return [node.run.ids.tolist() for node in trajectory.path(last.leaf)]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_plays_token_exact_under_run(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run_rollout("run", write_config(tmp_path, client), client)
    assert report["status"] == {"ok": 1}
    assert report["reward_mean"] == 1.0
    [trajectory] = asyncio.run(read_trajectories(report))
    require_played(client, trajectory)
    gateway = report["gateway"]
    assert gateway["bridged"] == gateway["turns"] - gateway["first"]
    assert gateway["first"] == 1 + client.auxiliary_requests
    assert list(trajectory.root_kinds.values()) == [RootKind.AUXILIARY] * client.auxiliary_requests

    monkeypatch.setenv("AGENT_CLIENT", client.name)
    repeated = asyncio.run(_repeat(trajectory, tmp_path))
    assert sampled_path(repeated) == sampled_path(trajectory)


@pytest.mark.parametrize("client", LAUNCHED, ids=lambda client: client.name)
def test_a_client_plays_token_exact_under_launch_with_a_killed_worker(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_CLIENT", client.name)
    world = LaunchHarness(tmp_path)
    settings = {"tasks.count": 4, "tasks.group_size": 1, "worker.concurrency": 2}
    launched = world.launch(write_config(tmp_path, client), settings, "--workers=2")
    launched.wait_until(lambda: any((tmp_path / "tmp").glob("*/client-home")) and bool(launched.live_workers()))
    os.kill(launched.live_workers()[0], signal.SIGKILL)
    report = launched.report(seconds=_RUN_TIMEOUT)
    assert report["status"] == {"ok": 4}
    assert report["deaths"] == 1
    trajectories = asyncio.run(read_trajectories({"run_dir": launched.run_dir}))
    assert len(trajectories) == 4
    for trajectory in trajectories:
        require_played(client, trajectory)
    assert world.leftover_processes() == []


async def _repeat(trajectory: Trajectory, directory: Path) -> Trajectory:
    async with embedded_policy(
        directory / "images", script=_POLICY, sampling={"max_tokens": 4096}, max_model_len=_CONTEXT
    ) as policy:
        played = await play(_RepeatConversation(trajectory), policy=policy)
    assert played.trajectory is not None
    return played.trajectory
