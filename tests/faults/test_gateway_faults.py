"""Programs that play over the gateway, and workers and programs that are killed in the middle of it."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.records.kinds import PromptSource
from rollout.testing import play
from rollout.testing.policies import embedded_policy
from rollout.trainer import Trajectory, check, samples
from rollout.trainer.reading.archive import open_archive
from tests.faults.launched import LaunchHarness
from tests.faults.programs import TURNS

PROGRAMS = Path(__file__).parent / "programs.yaml"
ROLLOUTS = 24
NEVER_READS = """
import os, socket, sys, time
from urllib.parse import urlsplit
address, body = urlsplit(os.environ["OPENAI_BASE_URL"]), sys.argv[1].encode()
connection = socket.create_connection((address.hostname, address.port))
head = f"POST {address.path}/chat/completions HTTP/1.1\\r\\nhost: gateway\\r\\ncontent-length: {len(body)}\\r\\n"
connection.sendall(f"{head}authorization: Bearer {os.environ['OPENAI_API_KEY']}\\r\\n\\r\\n".encode() + body)
time.sleep(3600)
"""


def sampled_tokens(trajectory: Trajectory) -> int:
    return sum(len(node.run.ids) - node.run.sampled_from for node in trajectory.nodes if node.sampled)


def trained_tokens(trajectory: Trajectory) -> int:
    return sum(int(sample.mask.sum()) for sample in samples(trajectory))


async def read_trajectories(run_dir: Path) -> list[Trajectory]:
    async with open_archive(run_dir) as reader:
        return [trajectory async for trajectory in reader]


def running_programs(world: LaunchHarness) -> list[str]:
    return [process for process in world.leftover_processes() if "agent_program.py" in process]


def test_every_turn_of_a_program_trains_once_although_a_worker_is_killed(world: LaunchHarness) -> None:
    launched = world.launch(PROGRAMS, {"tasks.count": ROLLOUTS, "environment.marker": world.directory}, "--workers=2")
    launched.wait_until(lambda: len(launched.live_workers()) == 2 and len(launched.done()) >= 4)
    launched.wait_until(lambda: len(running_programs(world)) > 4)
    os.kill(launched.live_workers()[0], signal.SIGKILL)
    report = launched.report(seconds=120)
    deaths = [entry for entry in launched.log() if entry["event"] == "worker died"]
    assert (report["status"], report["deaths"]) == ({"ok": ROLLOUTS}, 1), deaths
    assert report["reward_mean"] == 1.0
    assert report["retries"] >= 1
    assert world.leftover_processes() == world.temporary_files() == []
    turns, bridged = ROLLOUTS * TURNS, ROLLOUTS * (TURNS - 1)
    gateway = report["gateway"]
    assert (gateway["turns"], gateway["first"], gateway["bridged"]) == (turns, ROLLOUTS, bridged)
    assert (gateway["echoes"]["exact"], gateway["unreceived"]) == (bridged, 0)
    trajectories = asyncio.run(read_trajectories(Path(report["run_dir"])))
    assert len(trajectories) == ROLLOUTS
    for trajectory in trajectories:
        assert check(trajectory) == []
        sources = [step.prompt_source for step in trajectory.steps]
        assert sources == [PromptSource.FIRST, *[PromptSource.BRIDGE] * (TURNS - 1)]
        assert trained_tokens(trajectory) == sampled_tokens(trajectory) > 0


class KillsItsProgram(Environment):
    """Starts a program that reads no answer, and kills it when the answer was sent."""

    async def run(self, task: Task, model: Model) -> Score:
        body = {"model": "policy", "messages": [{"role": "user", "content": "Go."}], "stream": task.data["streamed"]}
        async with model.endpoint() as endpoint:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", NEVER_READS, json.dumps(body)), env={**os.environ, **endpoint.environ}
            )
            with anyio.fail_after(60):
                while not any(turn.received for turn in endpoint.transcript.turns):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            process.kill()
            await process.wait()
        return Score(1.0)


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_answer_that_a_killed_program_did_not_read_does_not_train(tmp_path: Path, streamed: bool) -> None:
    task = Task(id="0", index=0, seed=0, data={"streamed": streamed})
    async with embedded_policy(tmp_path) as policy:
        trajectory: Any = (await play(KillsItsProgram(EnvironmentSettings()), task, policy=policy)).trajectory
    assert trajectory.error is None
    assert check(trajectory) == []
    assert [step.turn for step in trajectory.steps] == [0]
    assert trajectory.unreceived_turns == {0}
    assert samples(trajectory) == []
