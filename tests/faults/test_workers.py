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
from tests.services.redis_server import RedisServer

SERVICES = os.environ.get("ROLLOUT_SERVICES") == "1"
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
    "ci": Size(rollouts=1000, kills=10, every=5.0, latency=240),
}.get(LEVEL, Size(rollouts=120, kills=4, every=2.0, latency=200))


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

    directory: Path
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def launch(self, config: Path, settings: Mapping[str, object], *arguments: str) -> Launched:
        return self._launched([str(config), *_told({"run.directory": self.directory / "runs", **settings}), *arguments])

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
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def color_codeword(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


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


def test_every_rollout_ends_exactly_once_whoever_is_killed(
    world: World, color_codeword: Path, failing_engine: str, queues: tuple[str, str]
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
        f"\n{url.partition(':')[0]}: {SIZE.rollouts} rollouts, {len(killed)} workers, {trainer_kills} trainers killed "
        f"in {time.monotonic() - began:.0f} s; ended at the trainer: {len(ends)}, more than once: "
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
    assert [path.name for path in directory.glob("tasks/**/claims/*")] == []


MISBEHAVING = Path(__file__).parent / "misbehaving.yaml"
LONG: dict[str, object] = {"tasks.does": "[behaves]", "tasks.group_size": 1, "engine.embedded.latency_ms": 300}


def test_one_rollout_that_misbehaves_fails_alone_and_is_named(world: World) -> None:
    expected = {
        "raises": "ValueError",
        "hangs": "RolloutTimeout",
        "holds": "EventLoopHeld",
        "answers_nonsense": "ScoreError",
        "answers_nan": "ScoreError",
        "prints": "OutputFlood",
        "forks": "ForkRefused",
        "exits": "SystemExit",
        "cancels": "RuntimeError",
        "dies": "AttemptsExhausted",
    }
    does = ["behaves", "writes", *(word for bad in expected for word in (bad, "behaves"))]
    launched = world.launch(
        MISBEHAVING,
        {
            "tasks.does": f"[{','.join(does)}]",
            "tasks.count": len(does),
            "tasks.group_size": 1,
            "worker.rollout_timeout": 10,
            "worker.block_timeout": 4,
        },
        "--workers=2",
    )
    out, err = launched.process.communicate(timeout=120)
    assert launched.process.returncode == 0, err[-3000:]
    report = json.loads(out)
    assert report["rollouts"] == len(does)
    assert report["status"] == {"ok": len(does) - len(expected), "failed": len(expected)}
    run_dir = Path(report["run_dir"])
    ended = {}
    for path in (run_dir / "claims" / "misbehaving").glob("*.done"):
        outcome = json.loads(path.read_text())
        if outcome["error"] is not None:
            ended[outcome["group"].partition("-")[2]] = outcome["error"]["type"]
    assert ended == expected
    assert sum(path.stat().st_size for path in run_dir.glob("workers/*.out")) < 48 << 20
    print(f"\n{len(expected)} of {len(does)} rollouts misbehaved, each failed alone; {report['deaths']} workers died")


def test_a_blocked_event_loop_is_not_a_dead_worker(world: World) -> None:
    block = 20.0 if LEVEL else 5.0
    launched = world.launch(
        MISBEHAVING,
        {
            "environment.block": block,
            "tasks.does": "[blocks,behaves,behaves,behaves]",
            "tasks.count": 8,
            "tasks.group_size": 1,
            "queue.tasks": f"file://{world.directory}/tasks?lease_time={2.0 if block < 10 else 10.0}",
        },
    )
    out, err = launched.process.communicate(timeout=120)
    assert launched.process.returncode == 0, err[-3000:]
    report = json.loads(out)
    assert (report["status"], report["deaths"], report["retries"]) == ({"ok": 8}, 0, 0)
    assert report["seconds"] > 2 * block
    assert all(path.name.endswith((".1", ".done")) for path in Path(report["run_dir"]).glob("claims/misbehaving/*"))


def test_workers_and_what_they_started_die_with_their_supervisor(world: World) -> None:
    settings = LONG | {
        "tasks.count": 400,
        "tasks.does": "[leaves_a_process,behaves]",
        "environment.marker": world.directory,
    }
    launched = world.launch(MISBEHAVING, {**settings, "worker.concurrency": 4}, "--workers=2")
    launched.until(lambda: len(launched.alive()) == 2 and len(world.leftovers()) > 6)
    launched.process.kill()
    launched.process.wait()
    deadline = time.monotonic() + 5.0
    while (left := world.leftovers()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def test_a_killed_launch_is_resumed_without_repeating_what_is_done(world: World) -> None:
    settings = LONG | {
        "tasks.count": 40,
        "worker.concurrency": 4,
        "queue.tasks": f"file://{world.directory}/t?lease_time=1",
    }
    launched = world.launch(MISBEHAVING, settings, "--workers=2")

    def done() -> set[str]:
        return {path.stem for path in launched.runs.glob("*/claims/misbehaving/*.done")}

    launched.until(lambda: len(done()) >= 10)
    launched.process.kill()
    launched.process.wait()
    before, run_dir = done(), launched.run_dir
    assert run_dir is not None
    stamps = {path: path.stat().st_mtime_ns for path in run_dir.glob("claims/misbehaving/*.done")}
    assert 10 <= len(before) < 40
    resumed = world.resume(run_dir, {}, "--workers=2")
    out, err = resumed.process.communicate(timeout=60)
    assert resumed.process.returncode == 0, err[-3000:]
    assert json.loads(out)["status"] == {"ok": 40}
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    begun = Counter(
        path.name.rpartition(".")[0] for path in run_dir.glob("claims/misbehaving/*") if path.name[-1].isdigit()
    )
    assert all(begun[name] == 1 for name in before)


def test_sigterm_drains_and_nothing_is_played_twice(world: World) -> None:
    launched = world.launch(MISBEHAVING, LONG | {"tasks.count": 200, "worker.concurrency": 4}, "--workers=2")
    launched.until(lambda: len(list(launched.runs.glob("*/claims/misbehaving/*.done"))) >= 6)
    launched.process.send_signal(signal.SIGTERM)
    out, err = launched.process.communicate(timeout=30)
    assert launched.process.returncode == 0, err[-3000:]
    report = json.loads(out)
    assert set(report["status"]) == {"ok"}
    assert 6 <= report["rollouts"] < 200
    claims = Path(report["run_dir"]) / "claims" / "misbehaving"
    begun = {path.name.rpartition(".")[0] for path in claims.iterdir() if path.name.endswith(".1")}
    assert begun == {path.name.rpartition(".")[0] for path in claims.glob("*.done")}
    assert list(claims.glob("*.returned")) == list(claims.glob("*.2")) == []
    assert world.leftovers() == []


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing(world: World) -> None:
    settings = {"tasks.does": "[behaves,hangs]", "tasks.count": 8, "tasks.group_size": 1, "worker.rollout_timeout": 600}
    launched = world.launch(MISBEHAVING, settings, "--workers=2")
    launched.until(lambda: len(list(launched.runs.glob("*/claims/misbehaving/*.done"))) == 4)
    launched.process.send_signal(signal.SIGINT)
    launched.until(lambda: any(entry["event"] == "worker drains" for entry in worker_logs(launched)))
    launched.process.send_signal(signal.SIGINT)
    out, err = launched.process.communicate(timeout=10)
    assert launched.process.returncode == 130, err[-3000:]
    report = json.loads(out)
    assert report["status"] == {"ok": 4}
    assert world.leftovers() == []
    resumed = world.resume(Path(report["run_dir"]), {"worker.rollout_timeout": 1})
    out, err = resumed.process.communicate(timeout=60)
    assert resumed.process.returncode == 0, err[-3000:]
    assert json.loads(out)["status"] == {"ok": 4, "failed": 4}


def test_a_second_launch_on_the_same_directory_is_refused(world: World) -> None:
    launched = world.launch(MISBEHAVING, LONG | {"tasks.count": 200, "worker.concurrency": 2})
    launched.until(lambda: bool(launched.alive()))
    assert launched.run_dir is not None
    second = world.resume(launched.run_dir, {})
    _, err = second.process.communicate(timeout=30)
    assert second.process.returncode == 1
    assert "another process runs here" in err
    assert "Traceback" not in err
    launched.process.send_signal(signal.SIGTERM)
    launched.process.communicate(timeout=30)


def test_workers_without_an_engine_halt_and_burn_no_rollout(world: World) -> None:
    settings = LONG | {
        "tasks.count": 4,
        "engine.urls": "['http://127.0.0.1:9']",
        "engine.timeout": 1,
        "worker.restarts": 1,
    }
    launched = world.launch(MISBEHAVING, settings)
    out, err = launched.process.communicate(timeout=60)
    assert launched.process.returncode == 1
    assert "no answer from the engine at http://127.0.0.1:9" in err
    assert "Traceback" not in err
    assert out == ""
    assert list(launched.runs.glob("*/claims/misbehaving/*")) == []


def worker_logs(launched: Launched) -> list[dict[str, Any]]:
    paths = launched.runs.glob("*/workers/*.jsonl")
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]
