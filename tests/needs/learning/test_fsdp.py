"""Two ranks with FSDP: a killed rank is replaced, each group is trained once, and no process is left."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from examples.fsdp.train import EVALUATIONS_FILE, STEPS_FILE
from rollout.trainer.weights.directory import WeightsDirectory
from tests.needs.learning.conftest import FULL
from tests.procfs import MarkedProcesses

TIMEOUT = 300.0
STEPS = 6
GROUPS_PER_STEP = 8
Training = subprocess.Popen[str]


@pytest.fixture
def marked() -> Iterator[MarkedProcesses]:
    found = MarkedProcesses()
    yield found
    found.kill()


@pytest.fixture
def start(repository: Path, tmp_path: Path, marked: MarkedProcesses) -> Iterator[Callable[..., Training]]:
    """Start the example."""
    started: list[Training] = []

    def training(*options: str) -> Training:
        command = [sys.executable, "-m", "examples.fsdp.run", "--runs", str(tmp_path), *options]
        process = subprocess.Popen(
            command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=marked.environment
        )
        started.append(process)
        return process

    yield training
    for process in started:
        process.kill()
        process.communicate()


def read_until(training: Training, beginning: str) -> str:
    """Read what training prints up to a line with this beginning, and return this line."""
    assert training.stdout is not None
    printed = []
    for line in training.stdout:
        printed.append(line)
        if line.startswith(beginning):
            return line
    raise AssertionError("training ended and printed:\n" + "".join(printed))


def pid_of_rank(marked: MarkedProcesses, rank: int) -> int:
    """Return the process of a rank. Its children have the same variables, but another command."""
    [pid] = [
        pid
        for pid in marked.pids()
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        and b"examples.fsdp.train" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return pid


def reports_of_steps(run: Path) -> dict[int, dict[str, Any]]:
    """Return the last report of each step, because a repeated step replaces one that was not saved."""
    lines = (run / STEPS_FILE).read_text().splitlines()
    return {report["step"]: report for report in map(json.loads, lines)}


def evaluations(run: Path) -> dict[int, float]:
    """Return the mean reward of held-out tasks, by version."""
    lines = (run / EVALUATIONS_FILE).read_text().splitlines()
    return {report["version"]: report["reward"] for report in map(json.loads, lines)}


@pytest.mark.parametrize("seed", range(4) if FULL else [0])
def test_a_killed_rank_is_replaced_and_each_group_is_trained_once(
    start: Callable[..., Training], marked: MarkedProcesses, seed: int
) -> None:
    choice = random.Random(seed)
    training = start("--steps", str(STEPS), "--evaluate-every", str(STEPS))
    run = Path(read_until(training, "run ").split()[1])
    read_until(training, f"step   {choice.randint(2, 4)}")
    time.sleep(choice.uniform(0.0, 1.0))  # a time within the next step
    os.kill(pid_of_rank(marked, choice.randrange(2)), signal.SIGKILL)
    printed, _ = training.communicate(timeout=TIMEOUT)
    assert training.returncode == 0, printed
    reports = reports_of_steps(run)
    assert sorted(reports) == list(range(1, STEPS + 1))
    for report in reports.values():
        assert report["max_difference"] < 1e-4
        # So the version that trains has sampled every token: no weights were published under the name of others.
        assert report["compared_tokens"] == report["trained_tokens"] == 64 * 6
        assert report["samples"] == 64
    groups = [group for report in reports.values() for group in report["groups"]]
    assert len(groups) == len(set(groups)) == STEPS * GROUPS_PER_STEP
    assert evaluations(run)[STEPS] > 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{STEPS:06}"]
    saved = WeightsDirectory(run / "policy").saved_version
    assert saved is not None
    assert saved.version == STEPS
    marked.wait_until_gone(TIMEOUT)


@pytest.mark.skipif(not FULL, reason="takes a launch for each signal")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_training_leaves_no_rank_and_no_other_process(
    start: Callable[..., Training], marked: MarkedProcesses, signum: signal.Signals
) -> None:
    training = start()
    read_until(training, "step   1")
    training.send_signal(signum)
    training.communicate(timeout=TIMEOUT)
    marked.wait_until_gone(TIMEOUT)
    assert training.returncode == (-signum if signum == signal.SIGKILL else 128 + signum)


@pytest.mark.skipif(not FULL, reason="takes minutes")
def test_a_random_policy_learns_on_two_ranks(start: Callable[..., Training]) -> None:
    training = start("--steps", "150")
    run = Path(read_until(training, "run ").split()[1])
    printed, _ = training.communicate(timeout=20 * 60)
    assert training.returncode == 0, printed
    reports = reports_of_steps(run)
    assert reports[1]["reward"] <= 0.45
    assert fmean(reports[step]["reward"] for step in range(146, 151)) >= 0.9
    assert evaluations(run)[140] >= 0.8
    assert max(report["max_difference"] for report in reports.values()) < 1e-3
