"""The example with TRL learns, on one rank and on two; it is resumed from its last checkpoint."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from examples.trl_color_codeword.report import CHECKPOINTS, DIFFERENCE, PICTURE, smoothed_reward, steps_of
from rollout.trainer.weights.directory import WeightsDirectory
from tests.procfs import MarkedProcesses

FULL = os.environ.get("ROLLOUT_TESTS") == "full"
TIMEOUT = 30 * 60.0 if FULL else 300.0
Training = subprocess.Popen[str]


@pytest.fixture
def marked() -> Iterator[MarkedProcesses]:
    found = MarkedProcesses()
    yield found
    found.kill()


@pytest.fixture
def start(repository: Path, marked: MarkedProcesses) -> Iterator[Callable[..., Training]]:
    """Start the example."""
    started: list[Training] = []

    def training(*options: str) -> Training:
        command = [sys.executable, "-m", "examples.trl_color_codeword.run", *options]
        process = subprocess.Popen(
            command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=marked.environment
        )
        started.append(process)
        return process

    yield training
    for process in started:
        process.kill()
        process.communicate()


def printed_by(training: Training) -> str:
    """Wait for the end of a training that succeeds; return what it printed."""
    printed, _ = training.communicate(timeout=TIMEOUT)
    assert training.returncode == 0, printed
    return printed


def logs_of(run: Path) -> list[Any]:
    """Return the logs of all steps, from the last checkpoint."""
    last = max((run / CHECKPOINTS).glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    return list(steps_of(json.loads((last / "trainer_state.json").read_text())["log_history"]))


def assert_engine_and_trainer_agree(logs: list[Any]) -> None:
    for log in logs:
        assert log[DIFFERENCE] < 1e-3
        assert log["rollout/published_share"] == 1


def test_a_resumed_run_continues_after_its_last_checkpoint(
    start: Callable[..., Training], marked: MarkedProcesses, tmp_path: Path
) -> None:
    printed_by(start("--runs", str(tmp_path), "--steps", "3", "--save-steps", "2"))
    [run] = tmp_path.glob("codeword-*")
    printed = printed_by(start("--resume", str(run), "--steps", "5", "--save-steps", "2", "--ranks", "2"))
    assert re.findall(r"^step +(\d+)", printed, re.MULTILINE) == ["4", "5"]
    logs = logs_of(run)
    assert [log["step"] for log in logs] == [1, 2, 3, 4, 5]
    assert_engine_and_trainer_agree(logs)
    saved = WeightsDirectory(run / "policy").saved_version
    assert saved is not None
    assert saved.version == 5
    assert ElementTree.fromstring((run / PICTURE).read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    marked.wait_until_gone(TIMEOUT)


@pytest.mark.skipif(not FULL, reason="takes minutes")
@pytest.mark.parametrize(("ranks", "seed"), [(1, 0), (1, 1), (1, 2), (2, 0)])
def test_a_random_policy_learns(
    ranks: int, seed: int, start: Callable[..., Training], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = printed_by(start("--runs", str(tmp_path), "--ranks", str(ranks), "--seed", str(seed)))
    with capsys.disabled():
        print(f"\n{ranks} ranks: {printed.splitlines()[-1]}")
    [run] = tmp_path.glob("codeword-*")
    logs = logs_of(run)
    assert logs[0]["reward"] <= 0.45
    assert smoothed_reward(logs) >= 0.95
    assert_engine_and_trainer_agree(logs)
