"""Workers are actors of a Ray cluster and are killed many times: each rollout ends exactly once."""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.needs.services.machines import Machine, network
from tests.needs.services.test_machines import trained, wait_until
from tests.procfs import is_alive

ROLLOUTS = 200
EVERY = 10.0
WORKERS = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machine]:
    """A network namespace with a Ray cluster on its loopback."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:6399")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield from _cluster()


def _cluster() -> Iterator[Machine]:
    # The directory contains sockets, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary, network(1) as made:
        (machine,) = made.machines
        start = ("--head", "--port=6399", "--node-ip-address=127.0.0.1", f"--num-cpus={WORKERS}", "--block")
        ray = str(Path(sys.executable).with_name("ray"))
        head = machine.start(ray, "start", *start, f"--temp-dir={temporary}", "--include-dashboard=false")
        wait_until(lambda: machine.ask(ray, "status") != "")
        yield machine
        head.send_signal(signal.SIGTERM)
        head.wait(60)


def events(run: Path | None) -> list[dict[str, Any]]:
    log = run / "log.jsonl" if run is not None else None
    return [json.loads(line) for line in log.read_text().splitlines()] if log is not None and log.exists() else []


def actors(log: list[dict[str, Any]]) -> dict[int, int]:
    """Return the pid of each actor whose worker is ready and has not ended, by the pid of the worker."""
    ended = {entry["pid"] for entry in log if entry["event"] == "worker ended"}
    ready = {entry["pid"] for entry in log if entry["event"] == "worker ready"}
    started = {entry["pid"]: entry["actor"] for entry in log if entry["event"] == "actor started"}
    return {pid: actor for pid, actor in started.items() if pid in ready - ended}


def test_each_rollout_ends_once_when_an_actor_is_killed_every_ten_seconds(
    cluster: Machine, repository: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "environment.image_size": 32,
        "tasks.count": ROLLOUTS // 4,
        "tasks.turns": 2,
        "engine.embedded.latency_ms": 1200,
        "worker.concurrency": 4,
        "worker.max_attempts": 20,
        "worker.restarts": 200,
        "queue.url": f"file://{tmp_path}/trajectories?lease_time=4",
        "run.directory": tmp_path / "runs",
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    config, checkpoint = str(repository / "configs" / "color_codeword.yaml"), tmp_path / "checkpoint.json"
    trainer = Path(__file__).parents[2] / "faults" / "trainer_peer.py"
    cluster.start(sys.executable, str(trainer), settings["queue.url"], str(checkpoint))
    began = time.monotonic()
    command = (sys.executable, "-m", "rollout", "launch", config, "--on=ray", f"--workers={WORKERS}", "--json")
    launch = cluster.start(*command, *options)
    draw, killed, due = random.Random(11), dict[int, int](), 0.0
    while launch.poll() is None:
        run = next((path.parent for path in tmp_path.glob("runs/*/launch.json")), None)
        victims = [(pid, actor) for pid, actor in actors(events(run)).items() if pid not in killed]
        if victims and time.monotonic() > due:
            pid, actor = draw.choice(victims)
            os.kill(actor, signal.SIGKILL)
            killed[pid], due = actor, time.monotonic() + EVERY
        assert time.monotonic() - began < 500
        time.sleep(0.2)
    out, err = launch.communicate(timeout=30)
    assert launch.returncode == 0, err[-3000:]
    wait_until(lambda: len(trained(checkpoint)) >= ROLLOUTS, 60)
    report, ends = json.loads(out), Counter(trained(checkpoint))
    print(
        f"\n{ROLLOUTS} rollouts on Ray, {len(killed)} actors killed in {time.monotonic() - began:.0f} s; ended at the "
        f"trainer: {len(ends)}, more than once: {sum(n > 1 for n in ends.values())}; {report['status']}, "
        f"{report['retries']} retries, {report['deaths']} deaths"
    )
    assert (report["rollouts"], report["status"]) == (ROLLOUTS, {"ok": report["status"]["ok"]})
    assert (len(ends), set(ends.values())) == (ROLLOUTS, {1})
    assert len(killed) >= 3
    assert report["deaths"] >= len(killed) - 1  # the last one may have had no work left
    assert not any(is_alive(pid) for pid in killed)


def test_a_launch_on_ray_drains(cluster: Machine, repository: Path, tmp_path: Path) -> None:
    settings = (
        "engine.embedded.latency_ms=300",
        "tasks.count=100",
        "worker.concurrency=4",
        f"run.directory={tmp_path}",
    )
    options = [part for setting in settings for part in ("--set", setting)]
    config = str(repository / "configs" / "color_codeword.yaml")
    launch = cluster.start(sys.executable, "-m", "rollout", "launch", config, "--on=ray", "--json", *options)
    wait_until(lambda: len(list(tmp_path.glob("*/claims/*/*.done"))) >= 4)
    launch.send_signal(signal.SIGTERM)
    out, err = launch.communicate(timeout=60)
    assert launch.returncode == 0, err[-3000:]
    report = json.loads(out)
    assert 4 <= report["rollouts"] < 400
    assert (report["deaths"], report["status"]) == (0, {"ok": report["rollouts"]})
    assert list(Path(report["run_dir"]).glob("claims/*/*.returned")) == []
    (started,) = (entry for entry in events(Path(report["run_dir"])) if entry["event"] == "actor started")
    wait_until(lambda: not any(is_alive(started[name]) for name in ("pid", "actor")), 20)
