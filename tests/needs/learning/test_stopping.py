"""Training leaves no process behind, however it ends, and it explains a failure."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.grpo_color_codeword import processes
from examples.grpo_color_codeword.processes import TrainingProcessEnded, transformers_sampler
from tests.needs.learning.conftest import FULL
from tests.procfs import MarkedProcesses

TIMEOUT = 90.0
Trainer = subprocess.Popen[str]
PROCESS_COUNT = 8
"""The trainer, its engine, its launch, two workers, and three processes that kill the children of a killed process."""


@pytest.fixture
def marked() -> Iterator[MarkedProcesses]:
    found = MarkedProcesses()
    yield found
    found.kill()


@pytest.fixture
def start(repository: Path, tmp_path: Path, marked: MarkedProcesses) -> Iterator[Callable[..., Trainer]]:
    """Start the example in a new process group."""
    started: list[Trainer] = []

    def trainer(*settings: str) -> Trainer:
        options = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "examples.grpo_color_codeword.train", "--runs", str(tmp_path), *options]
        process = subprocess.Popen(
            command, cwd=repository, stderr=subprocess.PIPE, text=True, env=marked.environment, process_group=0
        )
        started.append(process)
        return process

    yield trainer
    for process in started:
        process.kill()
        process.communicate()


# SIGKILL leaves the work to the reapers; the other signals let the trainer stop its processes.
STOPS: list[tuple[Callable[[int, int], None], signal.Signals]] = [(os.killpg, signal.SIGKILL)]
if FULL:
    STOPS += [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)]


@pytest.mark.parametrize(("stop", "signum"), STOPS)
def test_a_stopped_training_leaves_no_process(
    start: Callable[..., Trainer],
    marked: MarkedProcesses,
    stop: Callable[[int, int], None],
    signum: signal.Signals,
) -> None:
    trainer = start()
    assert trainer.stderr is not None
    assert trainer.stderr.readline().startswith("step   1")
    assert len(marked.pids()) == PROCESS_COUNT
    stop(trainer.pid, signum)
    _, printed = trainer.communicate(timeout=TIMEOUT)
    marked.wait_until_gone(TIMEOUT)
    assert "Traceback" not in printed
    assert trainer.returncode == (-signum if signum == signal.SIGKILL else 128 + signum)


def test_a_training_that_fails_says_why_and_leaves_no_process(
    start: Callable[..., Trainer], marked: MarkedProcesses
) -> None:
    trainer = start("environment.class=tests.needs.learning.broken:CannotBeMade")
    _, printed = trainer.communicate(timeout=TIMEOUT)
    marked.wait_until_gone(TIMEOUT)
    assert printed.startswith("training failed: ")
    assert "ValueError: there is no table" in printed
    assert "broken.py" in printed
    assert printed.count("Traceback") == 1  # only that of the environment
    assert trainer.returncode == 2  # as for each configuration that cannot be played


def test_an_engine_that_ended_is_named_as_the_cause(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marked: MarkedProcesses
) -> None:
    monkeypatch.setattr(processes, "_ENVIRONMENT", dict(marked.environment))

    def train() -> None:
        with transformers_sampler(checkpoint, tmp_path, tmp_path / "engine.log"):
            marked.kill()
            raise TrainingProcessEnded("the launch ended with 1")

    with pytest.raises(TrainingProcessEnded, match="the engine ended with -9"):
        train()
