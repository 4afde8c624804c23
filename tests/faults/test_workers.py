"""SIGKILL to workers, trainer and supervisor; an engine that fails: each rollout ends exactly once at the trainer."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rollout.serving import embedded, server
from rollout.serving.engine import EmbeddedSettings

LEVEL = os.environ.get("ROLLOUT_TESTS", "")


@dataclass(frozen=True)
class Size:
    """How much is killed. `latency` makes the run last long enough for it."""

    rollouts: int
    kills: int
    every: float
    latency: float


SIZE = {
    "full": Size(rollouts=1000, kills=100, every=5.0, latency=1500),
    "ci": Size(rollouts=1000, kills=10, every=5.0, latency=130),
}.get(LEVEL, Size(rollouts=120, kills=4, every=2.5, latency=250))


class FailingEngine:
    """Every 50th request fails: one is answered 500, the next one never."""

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
    monkeypatch.setattr(server, "create_app", lambda settings: FailingEngine(embedded.create_app(settings)))
    settings = EmbeddedSettings(allowed_directories=(tmp_path,), latency_ms=SIZE.latency)
    with server.EmbeddedServer(settings) as url:
        yield url


@dataclass
class Launched:
    """A launch as a process, and what its log says."""

    process: "subprocess.Popen[str]"
    runs: Path
    ended: dict[int, float] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path | None:
        return next(iter(self.runs.glob("*/launch.json")), self.runs / "?" / "?").parent if self.runs.exists() else None

    def log(self) -> list[dict[str, Any]]:
        path = (self.run_dir or self.runs) / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def alive(self) -> list[int]:
        """Workers that are ready and were not seen to end."""
        log = self.log()
        ends = [entry for entry in log if entry["event"] == "worker ended"]
        self.ended = {entry["pid"]: datetime.fromisoformat(entry["timestamp"]).timestamp() for entry in ends}
        ready = [int(entry["pid"]) for entry in log if entry["event"] == "worker ready"]
        return [pid for pid in ready if pid not in self.ended]

    def until(self, holds: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.log()[-5:]
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)


@dataclass
class World:
    """Starts launches and trainers in a private directory, and sees that nothing of them is left."""

    config: Path
    directory: Path
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def launch(self, settings: Mapping[str, object], *arguments: str) -> Launched:
        return self._launched(
            [str(self.config), *_told({"run.directory": self.directory / "runs", **settings}), *arguments]
        )

    def resume(self, run_dir: Path, settings: Mapping[str, object], *arguments: str) -> Launched:
        return self._launched(["--resume", str(run_dir), *_told(settings), *arguments])

    def _launched(self, what: list[str]) -> Launched:
        command = [sys.executable, "-m", "rollout", "launch", *what, "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.processes.append(process)
        return Launched(process, self.directory / "runs")

    def train(self, url: str, checkpoint: Path) -> "subprocess.Popen[str]":
        script = Path(__file__).parent / "trainer_peer.py"
        process = subprocess.Popen([sys.executable, str(script), url, str(checkpoint)], text=True)
        self.processes.append(process)
        return process

    def leftovers(self) -> list[str]:
        """Processes that mention this directory."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                except OSError:
                    continue
                if str(self.directory) in command or (state == "Z" and f" {os.getpid()} " in command):
                    found.append(f"{entry.name} {state} {command}")
        return found


def _told(settings: Mapping[str, object]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def world(repository: Path, tmp_path: Path) -> Iterator[World]:
    made = World(repository / "configs" / "color_codeword.yaml", tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def trained(checkpoint: Path) -> list[list[str]]:
    return list(json.loads(checkpoint.read_text())["trained"]) if checkpoint.exists() else []


SMALL: dict[str, object] = {
    "tasks.group_size": 4,
    "tasks.turns": 2,
    "environment.image_size": 32,
    "engine.sampling.temperature": 0,
}


def test_every_rollout_ends_exactly_once_whoever_is_killed(world: World, failing_engine: str) -> None:
    directory = world.directory
    url = f"file://{directory}/trajectories?lease_time=2"
    checkpoint = directory / "checkpoint.json"
    launched = world.launch(
        SMALL
        | {
            "tasks.count": SIZE.rollouts // 4,
            "engine.urls": json.dumps([failing_engine]),
            "engine.request_timeout": 4,
            "queue.url": url,
            "worker.concurrency": 4 if LEVEL == "ci" else 2,
            "worker.max_attempts": 12,
            "worker.restarts": 10 * SIZE.kills,
        },
        "--workers=4",
    )
    trainer = world.train(url, checkpoint)
    launched.until(lambda: bool(launched.alive()))
    draw = random.Random(8)
    killed: dict[int, float] = {}
    trainer_kills = 0
    began = time.monotonic()
    while len(killed) < SIZE.kills and launched.process.poll() is None:
        time.sleep(SIZE.every)
        victims = [pid for pid in launched.alive() if pid not in killed]
        if victims and launched.process.poll() is None:
            pid = draw.choice(victims)
            killed[pid] = time.time()
            os.kill(pid, signal.SIGKILL)
        if trainer_kills < 2 and len(killed) >= (trainer_kills + 1) * SIZE.kills // 3:
            trainer.kill()
            trainer.wait()
            trainer = world.train(url, checkpoint)
            trainer_kills += 1
    out, err = launched.process.communicate(timeout=600)
    assert launched.process.returncode == 0, err[-3000:]
    deadline = time.monotonic() + 60
    while len(trained(checkpoint)) < SIZE.rollouts and time.monotonic() < deadline:
        time.sleep(0.1)
    trainer.kill()
    trainer.wait()

    report = json.loads(out)
    launched.alive()
    noticed = [launched.ended[pid] - at for pid, at in killed.items()]
    ends = Counter(rollout for rollout, _ in trained(checkpoint))
    print(
        f"\n{SIZE.rollouts} rollouts, {len(killed)} workers and {trainer_kills} trainers killed in "
        f"{time.monotonic() - began:.0f} s; ended at the trainer: {len(ends)}, more than once: "
        f"{sum(count > 1 for count in ends.values())}, {dict(Counter(status for _, status in trained(checkpoint)))}; "
        f"retries {report['retries']}; slowest death noticed after {max(noticed):.2f} s"
    )
    assert len(killed) == SIZE.kills
    assert trainer_kills == 2
    assert len(ends) == SIZE.rollouts
    assert set(ends.values()) == {1}
    assert report["rollouts"] == SIZE.rollouts
    assert max(noticed) < 3.0
    assert world.leftovers() == []
    run_dir = launched.run_dir
    assert run_dir is not None
    assert [path.name for path in run_dir.rglob("*") if "draft" in path.name or path.name.startswith("tmp")] == []
    assert [path.name for path in (run_dir / "tasks").rglob("claims/*")] == []
