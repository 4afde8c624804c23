"""The example with TRL learns, on one rank and on two; it is resumed from its last checkpoint."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from examples.trl_color_codeword.train import CHECKPOINTS, DIFFERENCE, PICTURE, smoothed_reward, steps_of
from rollout.trainer.weights.directory import WeightsDirectory

FULL = os.environ.get("ROLLOUT_TESTS") == "full"
TIMEOUT = 30 * 60.0 if FULL else 300.0


def train(repository: Path, *options: str) -> str:
    """Run the example; return what it printed."""
    command = [sys.executable, "-m", "examples.trl_color_codeword.run", *options]
    ended = subprocess.run(
        command,
        cwd=repository,
        timeout=TIMEOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def logs_of(run: Path) -> list[Any]:
    """Return the logs of all steps, from the last checkpoint."""
    last = max((run / CHECKPOINTS).glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    return list(steps_of(json.loads((last / "trainer_state.json").read_text())["log_history"]))


def assert_engine_and_trainer_agree(logs: list[Any]) -> None:
    for log in logs:
        assert log[DIFFERENCE] < 1e-3
        assert log["rollout/published_share"] == 1


def test_a_resumed_run_continues_after_its_last_checkpoint(repository: Path, tmp_path: Path) -> None:
    train(repository, "--runs", str(tmp_path), "--steps", "3", "--save-steps", "2")
    [run] = tmp_path.glob("codeword-*")
    assert [log["step"] for log in logs_of(run)] == [1, 2, 3]
    printed = train(repository, "--resume", str(run), "--steps", "5", "--save-steps", "2", "--ranks", "2")
    assert re.findall(r"^step +(\d+)", printed, re.MULTILINE) == ["4", "5"]
    logs = logs_of(run)
    assert [log["step"] for log in logs] == [1, 2, 3, 4, 5]
    assert_engine_and_trainer_agree(logs)
    saved = WeightsDirectory(run / "policy").saved_version
    assert saved is not None
    assert saved.version == 5
    assert ElementTree.fromstring((run / PICTURE).read_text()).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.skipif(not FULL, reason="takes minutes")
@pytest.mark.parametrize(("ranks", "seed"), [(1, 0), (1, 1), (1, 2), (2, 0)])
def test_a_random_policy_learns(ranks: int, seed: int, repository: Path, tmp_path: Path) -> None:
    printed = train(repository, "--runs", str(tmp_path), "--ranks", str(ranks), "--seed", str(seed))
    print(printed.splitlines()[-1])
    [run] = tmp_path.glob("codeword-*")
    logs = logs_of(run)
    assert logs[0]["reward"] <= 0.45
    assert smoothed_reward(logs) >= 0.95
    assert_engine_and_trainer_agree(logs)
