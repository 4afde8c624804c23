"""A command ends although its environment catches the cancellation or holds the event loop."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DEADLINE = 90
"""Seconds; without the code under test, the commands never end."""


def command(*arguments: str, does: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rollout", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, "DOES": does},
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name in ("never_ends.py", "never_ends.yaml"):
        shutil.copy(HERE / name, tmp_path)
    return tmp_path / "never_ends.yaml"


@pytest.mark.parametrize(
    ("does", "code", "status"),
    [("stays", 1, {"failed": 1}), ("starts_a_task", 0, {"ok": 1}), ("hangs_in_a_thread", 1, {"failed": 1})],
    ids=["run", "task", "thread"],
)
def test_a_run_ends_although_its_environment_does_not(
    config: Path, does: str, code: int, status: dict[str, int]
) -> None:
    ran = command("run", str(config), "--json", does=does)
    assert (ran.returncode, json.loads(ran.stdout)["status"]) == (code, status), ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Task was destroyed" not in ran.stderr


@pytest.mark.parametrize(
    ("does", "code", "text"),
    [
        ("stays", 1, "the environment raises TimeoutError: the environment did not end within 1 s"),
        ("starts_a_task", 0, "the same as recorded"),
        ("hangs_in_a_thread", 1, "the environment raises TimeoutError: the environment did not end within 1 s"),
        ("holds", 1, "the environment raises EventLoopHeld"),
    ],
    ids=["run", "task", "thread", "loop"],
)
def test_a_replay_ends_although_its_environment_does_not(config: Path, does: str, code: int, text: str) -> None:
    assert command("run", str(config), "--json", does="scores").returncode == 0
    replayed = command("replay", str(config.parent / "runs"), "000000.0", "--timeout", "1", does=does)
    assert replayed.returncode == code, replayed.stderr
    assert text in replayed.stdout
    assert "Traceback" not in replayed.stderr
    assert "Task was destroyed" not in replayed.stderr
