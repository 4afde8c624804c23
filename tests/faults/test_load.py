"""Thousands of rollouts in one worker: how much memory they need, and how much CPU time they use while they wait."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.launched import set_options

CONFIG = Path(__file__).parent / "many_images.yaml"
FULL = os.environ.get("ROLLOUT_TESTS") == "full"
ROLLOUTS = 2000 if FULL else 100
WAITS = (500, 1000, 2000, 4000, 8000) if FULL else (500, 1000)
LIMIT = 600_000_000 if FULL else 200_000_000


@dataclass
class Load:
    """What a worker used at most, in bytes, rollouts and CPU seconds."""

    peak: int = 0
    in_flight: int = 0
    cpu: float = 0.0


def play_and_measure(directory: Path, settings: Mapping[str, object]) -> tuple[Load, dict[str, object]]:
    """Play with one worker; return what it used, and the summary."""
    options = {"run.directory": directory, "tasks.group_size": 1, **settings}
    command = [sys.executable, "-m", "rollout", "launch", str(CONFIG), "--json", *set_options(options)]
    load = Load()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launch:
        while launch.poll() is None:
            measure(directory, load)
            time.sleep(0.2)
        out, err = launch.communicate()
    assert launch.returncode == 0, err
    return load, json.loads(out)


def measure(directory: Path, load: Load) -> None:
    for log in directory.glob("*/log.jsonl"):
        started = [json.loads(line) for line in log.read_text().splitlines() if '"worker started"' in line]
        for entry in started:
            try:
                status = Path(f"/proc/{entry['pid']}/status").read_text()
                times = Path(f"/proc/{entry['pid']}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            resident = [line for line in status.splitlines() if line.startswith("VmHWM")]
            load.peak = max(load.peak, *(int(line.split()[1]) << 10 for line in resident), 0)
            load.cpu = max(load.cpu, (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"))
    claimed = sum(1 for _ in directory.glob("*/claims/*/*.1"))
    done = sum(1 for _ in directory.glob("*/claims/*/*.done"))
    load.in_flight = max(load.in_flight, claimed - done)


def test_rollouts_with_many_images_fit_into_memory_together(tmp_path: Path) -> None:
    settings = {
        "tasks.count": ROLLOUTS,
        "worker.concurrency": ROLLOUTS,
        "environment.together": ROLLOUTS,
        "engine.timeout": 1200,
        "engine.embedded.latency_ms": 10_000,
    }
    load, report = play_and_measure(tmp_path / "runs", settings)
    print(f"\n{load.in_flight} rollouts of 32 images in flight: {load.peak / 1e6:.0f} MB resident at the peak")
    assert report["status"] == {"ok": ROLLOUTS}
    assert load.in_flight == ROLLOUTS
    assert load.peak < LIMIT


def test_the_cost_of_waiting_is_proportional_to_the_rollouts(tmp_path: Path) -> None:
    used = {}
    for count in (1, *WAITS):
        settings = {
            "tasks.count": count,
            "worker.concurrency": count,
            "environment.images": 0,
            "environment.together": count,
            "environment.waits": 3,
        }
        load, report = play_and_measure(tmp_path / str(count), settings)
        assert report["status"] == {"ok": count}
        assert load.in_flight == count
        used[count] = load.cpu
    each = {count: 1000 * (used[count] - used[1]) / count for count in WAITS}
    summary = ", ".join(f"{count}: {used[count]:.2f} s ({each[count]:.2f} ms each)" for count in WAITS)
    ratio = each[WAITS[-1]] / each[WAITS[0]]
    print(f"\nCPU of a worker whose rollouts wait, {used[1]:.2f} s with one; {summary}; {ratio:.2f} times as much each")
    assert ratio < 2
