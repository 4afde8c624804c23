"""Workers and programs are killed at random, and nothing of the programs is left."""

import asyncio
import os
import random
import signal
import socket
import time
from collections import Counter
from pathlib import Path

from rollout.records.endings import RolloutStatus
from rollout.records.kinds import PromptSource
from rollout.trainer import Trajectory, check
from rollout.trainer.reading.archive import open_archive
from tests.faults.launched import LaunchHarness, LaunchProcess, worker_logs
from tests.faults.programs import TURNS

CONFIG = Path(__file__).parent / "killed_programs.yaml"
ROLLOUTS = 200 if os.environ.get("ROLLOUT_TESTS") == "full" else 60
SECONDS_BETWEEN_KILLS = 1.5
DEADLINE = 500.0


def processes_with(text: str) -> dict[int, str]:
    """Return the command of each process whose environment contains a text."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found


async def read_trajectories(run_dir: Path) -> list[Trajectory]:
    async with open_archive(run_dir) as reader:
        return [trajectory async for trajectory in reader]


def kill_at_random(launched: LaunchProcess, workspaces: str) -> Counter[str]:
    """Kill a worker or a program again and again until the launch has ended, and return how many of each."""
    chance, killed = random.Random(7), Counter[str]()
    deadline = time.monotonic() + DEADLINE
    while launched.process.poll() is None:
        assert time.monotonic() < deadline, launched.log()[-5:]
        time.sleep(chance.uniform(0, 2 * SECONDS_BETWEEN_KILLS))
        workers = launched.live_workers()
        programs = [pid for pid, command in processes_with(workspaces).items() if "agent_program.py" in command]
        kind = "worker" if workers and chance.random() < 0.4 else "program"
        victims = workers if kind == "worker" else programs
        if victims:
            try:
                os.kill(chance.choice(victims), signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed[kind] += 1
    return killed


def test_each_program_ends_once_and_leaves_nothing_although_workers_and_programs_are_killed(
    world: LaunchHarness,
) -> None:
    workspaces = f"TMPDIR={world.directory}/tmp/rollout-program-"
    launched = world.launch(CONFIG, {"tasks.count": ROLLOUTS}, "--workers=2")
    launched.wait_until(lambda: len(launched.live_workers()) == 2 and bool(processes_with(workspaces)))
    killed = kill_at_random(launched, workspaces)
    report = launched.report(seconds=60)
    assert killed["worker"] >= 3, killed
    assert killed["program"] >= 3, killed
    status = report["status"]
    assert set(status) <= {"ok", "failed"}
    assert sum(status.values()) == ROLLOUTS
    assert status.get("failed", 0) <= killed["program"]

    trajectories = asyncio.run(read_trajectories(Path(report["run_dir"])))
    assert len({trajectory.rollout for trajectory in trajectories}) == len(trajectories) == ROLLOUTS
    for trajectory in trajectories:
        assert check(trajectory) == []
        if trajectory.status is RolloutStatus.OK:
            sources = [step.prompt_source for step in trajectory.steps]
            assert sources == [PromptSource.FIRST, *[PromptSource.BRIDGE] * (TURNS - 1)]

    assert processes_with(str(world.directory)) == {}
    assert list((world.directory / "tmp").glob("rollout-program-*")) == []
    assert sorted(world.leftover_processes()) == []
    addresses = {log["address"] for log in worker_logs(launched) if log["event"] == "the gateway listens"}
    assert len(addresses) >= 2 + killed["worker"] // 2
    for address in addresses:
        host, _, port = address.rpartition(":")
        with socket.socket() as probe:
            assert probe.connect_ex((host, int(port))) != 0, f"{address} is still open"
