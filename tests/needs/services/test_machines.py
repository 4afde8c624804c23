"""Two machines share a Redis, and one is cut off for a while: nothing is lost, nothing is duplicated."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.needs.services.machines import Machine, Network, network

ROLLOUTS = 240
CUT = 20.0
BOUND = 10.0
SCRAPE = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


@pytest.fixture
def joined() -> Iterator[Network]:
    with network(2) as made:
        yield made


@pytest.fixture
def redis_url(joined: Network, tmp_path: Path) -> str:
    host, files = joined.hub.address, ("--dir", str(tmp_path), "--save", "", "--appendonly", "no")
    joined.hub.start("redis-server", "--port", "6379", "--bind", host, "--protected-mode", "no", *files)
    wait_until(lambda: "PONG" in joined.machines[0].ask("redis-cli", "-h", host, "ping"))
    return f"redis://{host}:6379/0"


def wait_until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def finished(log: Path) -> list[float]:
    """Return the times at which a worker logged its finished rollouts; their last records were accepted by then."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [datetime.fromisoformat(e["timestamp"]).timestamp() for e in lines if e["event"] == "rollout finished"]


def trained(checkpoint: Path) -> list[str]:
    return [rollout for rollout, _ in json.loads(checkpoint.read_text())["trained"]] if checkpoint.exists() else []


def metric(machine: Machine, directory: Path, name: str) -> dict[str, float]:
    """Return the values of a metric that a process on a machine exports, by their labels."""
    (target_group,) = json.loads(directory.read_text())
    text = machine.ask(sys.executable, "-c", SCRAPE, f"http://{target_group['targets'][0]}/metrics")
    pairs = (line.removeprefix(name).rsplit(" ", 1) for line in text.splitlines() if line.startswith(f"{name}{{"))
    return {labels: float(value) for labels, value in pairs}


@pytest.mark.parametrize("which", ["of a worker that joined", "of the launch and the trainer"])
def test_a_machine_that_is_cut_off_comes_back(
    joined: Network, redis_url: str, repository: Path, tmp_path: Path, which: str
) -> None:
    first, second = joined.machines
    config = str(repository / "configs" / "color_codeword.yaml")
    settings: dict[str, Any] = {
        "environment.image_size": 32,
        "tasks.count": ROLLOUTS // 4,
        "tasks.turns": 2,
        "engine.embedded.latency_ms": 400,
        "worker.concurrency": 4,
        "queue.url": f"{redis_url}?stream=trajectories",
        "queue.tasks": f"{redis_url}?stream=tasks",
        "queue.control": f"{redis_url}?stream=control",
        "run.directory": tmp_path / "runs",
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    rollout = (sys.executable, "-m", "rollout")
    checkpoint = tmp_path / "checkpoint.json"
    trainer = Path(__file__).parents[2] / "faults" / "trainer_peer.py"
    first.start(sys.executable, str(trainer), settings["queue.url"], str(checkpoint))
    launch = first.start(*rollout, "launch", config, "--json", *options)
    wait_until(lambda: bool(list(tmp_path.glob("runs/*/launch.json"))))
    (run,) = (path.parent for path in tmp_path.glob("runs/*/launch.json"))
    worker = second.start(*rollout, "worker", config, "--run", str(run), "--name", "joined", *options)
    logs = {first.name: run / "workers" / "color_codeword-0.jsonl", second.name: run / "workers" / "joined.jsonl"}
    wait_until(lambda: all(len(finished(log)) >= 8 for log in logs.values()))

    lost, exports = (second, "joined.json") if "worker" in which else (first, "launch.json")
    other = first if lost is second else second
    began = time.time()
    joined.cut(lost)
    time.sleep(CUT - 1)
    silence = metric(lost, run / "metrics" / exports, "rollout_queue_silence_seconds")
    time.sleep(max(0.0, began + CUT - time.time()))
    ended = time.time()
    joined.mend(lost)

    out, err = launch.communicate(timeout=180)
    assert launch.returncode == 0, err[-3000:]
    wait_until(lambda: len(trained(checkpoint)) >= ROLLOUTS, 60)
    assert worker.wait(60) == 0  # it ends with its run
    time.sleep(1.0)

    at = {name: finished(log) for name, log in logs.items()}
    while_cut = {name: sum(began + 1 < when < ended for when in found) for name, found in at.items()}
    after = sorted(when - ended for when in at[lost.name] if when >= ended)
    recovery = after[0]
    ends = Counter(trained(checkpoint))
    print(
        f"\nthe machine {which}, cut off for {ended - began:.1f} s: {len(ends)} of {ROLLOUTS} rollouts ended at the "
        f"trainer, more than once: {sum(n > 1 for n in ends.values())}; while it was away {while_cut[lost.name]} "
        f"finished there and {while_cut[other.name]} on the other; {recovery:.2f} s after the cut the first one "
        f"finished there again, and {len(after)} in all; silence reported: {max(silence.values()):.1f} s; "
        f"summary {json.loads(out)['status']}"
    )
    assert while_cut[lost.name] == 0
    assert max(silence.values()) > CUT / 2
    assert (len(ends), set(ends.values())) == (ROLLOUTS, {1})
    assert json.loads(out)["rollouts"] == ROLLOUTS
    assert recovery < BOUND
    assert len(after) > 4
