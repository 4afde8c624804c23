"""Workers and trainers are killed, and the engine fails: each rollout ends exactly once at the trainer."""

import asyncio
import json
import os
import random
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rollout.serving import endpoint, server
from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from rollout.serving.engine import Engine
from tests.faults.launched import LaunchHarness
from tests.needs.services.redis_server import RedisServer

SERVICES = os.environ.get("ROLLOUT_SERVICES") == "1"


@dataclass(frozen=True)
class Size:
    """How many rollouts and kills; `latency` makes the run long enough for them."""

    rollouts: int
    kills: int
    every: float
    latency: float


SIZE = (
    Size(rollouts=1000, kills=100, every=5.0, latency=1500)
    if os.environ.get("ROLLOUT_TESTS") == "full"
    else Size(rollouts=1000, kills=10, every=5.0, latency=240)
)


class FailingEngine:
    """Fails every 50th request: with a 500, or with no answer, in turns."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._lock = threading.Lock()
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") != "/inference/v1/generate":
            return await self._app(scope, receive, send)
        with self._lock:
            self.asked += 1
            number = self.asked
        if number % 100 == 50:
            return await JSONResponse({"error": {"message": "out of luck"}}, 500)(scope, receive, send)
        if number % 100 == 0:
            await asyncio.sleep(3600)
        return await self._app(scope, receive, send)


@pytest.fixture
def failing_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    def failing(engine: Engine, **options: Any) -> FailingEngine:
        return FailingEngine(endpoint.create_app(engine, **options))

    monkeypatch.setattr(server, "create_app", failing)
    settings = EmbeddedSettings(allowed_directories=(tmp_path,), latency_ms=SIZE.latency)
    with EmbeddedServer(settings) as url:
        yield url


@pytest.fixture
def color_codeword(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


@dataclass(frozen=True)
class Kill:
    """When a process was killed, and when it was dead. Threads that wait for a disk delay its death."""

    asked: float
    dead: float


def kill(pid: int) -> Kill:
    process = os.pidfd_open(pid)
    asked = time.time()
    os.kill(pid, signal.SIGKILL)
    select.select([process], [], [])  # until the last of its threads has ended
    dead = time.time()
    os.close(process)
    return Kill(asked, dead)


def trained(checkpoint: Path) -> list[list[str]]:
    return list(json.loads(checkpoint.read_text())["trained"]) if checkpoint.exists() else []


SMALL: dict[str, object] = {
    "tasks.group_size": 4,
    "tasks.turns": 2,
    "environment.image_size": 32,
    "engine.sampling.temperature": 0,
}


@pytest.fixture(params=["file", "redis"] if SERVICES else ["file"])
def queues(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The URLs of a trajectories queue and of a tasks queue."""
    if request.param == "file":
        yield f"file://{tmp_path}/trajectories?lease_time=2", f"file://{tmp_path}/tasks"
        return
    redis = RedisServer(tmp_path)
    yield f"{redis.url}?stream=trajectories&lease_time=2", f"{redis.url}?stream=tasks"
    redis.kill()


def test_every_rollout_ends_exactly_once_whichever_process_is_killed(
    world: LaunchHarness, color_codeword: Path, failing_engine: str, queues: tuple[str, str]
) -> None:
    directory = world.directory
    url, tasks = queues
    checkpoint = directory / "checkpoint.json"
    launched = world.launch(
        color_codeword,
        SMALL
        | {
            "tasks.count": SIZE.rollouts // 4,
            "engine.urls": json.dumps([failing_engine]),
            "engine.request_timeout": 4,
            "queue.url": url,
            "queue.tasks": tasks,
            "worker.concurrency": 2 if SIZE.kills > 10 else 4,
            "worker.max_attempts": 12,
            "worker.restarts": 10 * SIZE.kills,
        },
        "--workers=4",
    )
    trainer = world.train(url, checkpoint)
    launched.wait_until(lambda: bool(launched.live_workers()))
    draw = random.Random(8)
    killed: dict[int, Kill] = {}
    trainer_kills = 0
    began = time.monotonic()
    while len(killed) < SIZE.kills and launched.process.poll() is None:
        time.sleep(SIZE.every)
        victims = [pid for pid in launched.live_workers() if pid not in killed]
        if victims and launched.process.poll() is None:
            pid = draw.choice(victims)
            killed[pid] = kill(pid)
        if trainer_kills < 2 and len(killed) >= (trainer_kills + 1) * SIZE.kills // 3:
            trainer.kill()
            trainer.wait()
            trainer = world.train(url, checkpoint)
            trainer_kills += 1
    report = launched.report(seconds=600)
    deadline = time.monotonic() + 60
    while len(trained(checkpoint)) < SIZE.rollouts and time.monotonic() < deadline:
        time.sleep(0.1)
    trainer.kill()
    trainer.wait()

    launched.live_workers()
    noticed = [launched.ended[pid] - kill_times.dead for pid, kill_times in killed.items()]
    dying = max(kill.dead - kill.asked for kill in killed.values())
    left, temporary = world.leftover_processes(), world.temporary_files()
    ends = Counter(rollout for rollout, _ in trained(checkpoint))
    print(
        f"\n{url.partition(':')[0]}: {SIZE.rollouts} rollouts, {len(killed)} workers, {trainer_kills} trainers killed "
        f"in {time.monotonic() - began:.0f} s; ended at the trainer: {len(ends)}, more than once: "
        f"{sum(count > 1 for count in ends.values())}, {dict(Counter(status for _, status in trained(checkpoint)))}; "
        f"retries {report['retries']}; slowest death noticed after {max(noticed):.2f} s, slowest to die {dying:.2f} s; "
        f"processes left: {len(left)}, temporary files left: {len(temporary)}"
    )
    assert len(killed) == SIZE.kills
    assert trainer_kills == 2
    assert len(ends) == SIZE.rollouts
    assert set(ends.values()) == {1}
    assert report["rollouts"] == SIZE.rollouts
    assert max(noticed) < 3.0
    assert left == []
    assert temporary == []
    assert [path.name for path in directory.glob("tasks/**/claims/*")] == []
