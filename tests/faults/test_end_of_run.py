"""The loop from the guide ends by itself: after a launch, after a drain, and after a kill and a resume."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.launched import LaunchHarness, LaunchProcess
from tests.needs.services.redis_server import RedisServer
from transports import open_queue

MISBEHAVING = Path(__file__).parent / "misbehaving.yaml"
GUIDE = Path(__file__).parents[2] / "docs" / "trainer.md"
ROLLOUTS, GROUP_SIZE = 24, 2
SETTINGS: dict[str, object] = {
    "tasks.does": "[behaves]",
    "tasks.count": ROLLOUTS // GROUP_SIZE,
    "tasks.group_size": GROUP_SIZE,
    "engine.embedded.latency_ms": 100,
    "worker.concurrency": 4,
}
DEADLINE = 90.0


class GuideTrainer:
    """The first program of the guide as a process, with a checkpoint."""

    def __init__(self, world: LaunchHarness, url: str, *, step_seconds: float = 0.0) -> None:
        (code,) = re.findall(r"## A whole loop\n\n```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
        code = code.replace("        save()\n", f"        save()\n        __import__('time').sleep({step_seconds})\n")
        self._script = world.directory / "trainer.py"
        self._script.write_text(code, "utf-8")
        self._world, self._url = world, url
        self._checkpoint = world.directory / "checkpoint.json"
        self.process = self.start()

    def start(self) -> "subprocess.Popen[str]":
        """Start the trainer, or start it again from its checkpoint."""
        command = [sys.executable, str(self._script), self._url, str(self._checkpoint)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._world.processes.append(self.process)
        return self.process

    def require_end(self, rollouts: int) -> None:
        """Wait until the trainer ends by itself, and check what it has trained."""
        out, err = self.process.communicate(timeout=DEADLINE)
        assert (self.process.returncode, out) == (0, f"trained {rollouts} rollouts\n"), err[-3000:]
        assert set(Counter(self.trained()).values()) == {1}
        assert asyncio.run(self._backlog()) == 0

    def trained(self) -> list[str]:
        """Return the rollouts in the checkpoint."""
        if not self._checkpoint.exists():
            return []
        trained: list[str] = json.loads(self._checkpoint.read_text("utf-8"))["weights"]["trained"]
        return trained

    async def _backlog(self) -> int:
        async with open_queue(self._url) as queue:
            return (await queue.stats()).backlog_records


def trajectories_url(world: LaunchHarness, redis: RedisServer | None) -> str:
    """Return a queue that is not in the run's directory, so that the trainer can start before the launch."""
    url = f"file://{world.directory}/trajectories" if redis is None else f"{redis.url.partition('?')[0]}?stream=end"
    return f"{url}{'&' if '?' in url else '?'}partitions=2"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", "--appendonly", "yes")
    yield server
    server.kill()


def kill_launch(launched: LaunchProcess) -> None:
    """Kill the launch when some rollouts have ended. Its workers notice that and end."""
    launched.wait_until(lambda: 4 <= len(launched.done()) < ROLLOUTS)
    launched.process.kill()
    launched.process.wait()


def end_after_a_kill_and_a_resume(world: LaunchHarness, url: str) -> None:
    trainer = GuideTrainer(world, url)
    launched = world.launch(MISBEHAVING, {**SETTINGS, "queue.url": url}, "--workers=2")
    kill_launch(launched)
    with pytest.raises(subprocess.TimeoutExpired):
        trainer.process.wait(timeout=5)
    assert launched.run_dir is not None
    world.resume(launched.run_dir, {}, "--workers=2").report(seconds=DEADLINE)
    trainer.require_end(ROLLOUTS)


def test_the_loop_ends_after_a_launch_has_ended_and_ends_again_from_its_checkpoint(world: LaunchHarness) -> None:
    url = trajectories_url(world, None)
    trainer = GuideTrainer(world, url)
    world.launch(MISBEHAVING, {**SETTINGS, "queue.url": url}, "--workers=2").report(seconds=DEADLINE)
    trainer.require_end(ROLLOUTS)
    trainer.start()
    trainer.require_end(ROLLOUTS)


def test_the_loop_ends_after_a_kill_and_a_resume(world: LaunchHarness) -> None:
    end_after_a_kill_and_a_resume(world, trajectories_url(world, None))


def test_a_trainer_that_was_killed_continues_and_ends(world: LaunchHarness) -> None:
    url = trajectories_url(world, None)
    trainer = GuideTrainer(world, url)
    launched = world.launch(MISBEHAVING, {**SETTINGS, "queue.url": url}, "--workers=2")
    launched.wait_until(lambda: 4 <= len(launched.done()) < ROLLOUTS)
    trainer.process.kill()
    trainer.process.wait()
    launched.report(seconds=DEADLINE)
    trainer.start()
    trainer.require_end(ROLLOUTS)


def test_a_trainer_that_is_killed_after_the_launch_has_ended_trains_the_rest(world: LaunchHarness) -> None:
    """The queue holds the end of the run, and the dead trainer holds the lease for another ten seconds."""
    url = trajectories_url(world, None)
    world.launch(MISBEHAVING, {**SETTINGS, "queue.url": url}, "--workers=2").report(seconds=DEADLINE)
    trainer = GuideTrainer(world, url, step_seconds=0.3)
    deadline = time.monotonic() + DEADLINE
    while not trainer.trained():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    trainer.process.kill()
    trainer.process.wait()
    assert 0 < len(trainer.trained()) < ROLLOUTS
    trainer.start()
    trainer.require_end(ROLLOUTS)


def test_the_loop_ends_when_the_launch_is_drained_and_a_resume_gives_it_the_rest(world: LaunchHarness) -> None:
    url = trajectories_url(world, None)
    trainer = GuideTrainer(world, url)
    launched = world.launch(MISBEHAVING, {**SETTINGS, "queue.url": url}, "--workers=2")
    launched.wait_until(lambda: 4 <= len(launched.done()) < ROLLOUTS - 8)
    launched.process.send_signal(signal.SIGTERM)
    launched.process.communicate(timeout=DEADLINE)
    out, err = trainer.process.communicate(timeout=DEADLINE)
    assert trainer.process.returncode == 0, err[-3000:]
    assert 0 < int(re.findall(r"trained (\d+) rollouts", out)[0]) < ROLLOUTS
    trainer.start()  # it may end again before the resumed launch begins
    assert launched.run_dir is not None
    world.resume(launched.run_dir, {}, "--workers=2").report(seconds=DEADLINE)
    trainer.process.communicate(timeout=DEADLINE)
    trainer.start()
    trainer.require_end(ROLLOUTS)


if os.environ.get("ROLLOUT_SERVICES") == "1":

    def test_the_loop_of_a_redis_queue_ends_after_a_kill_and_a_resume(world: LaunchHarness, redis: RedisServer) -> None:
        end_after_a_kill_and_a_resume(world, trajectories_url(world, redis))
