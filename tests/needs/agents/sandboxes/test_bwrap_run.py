"""Programs that play in bubblewrap: a whole run with Codex, and what `Program` shows to a command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.environments.program import Program
from rollout.programs.sandboxes.relay import START_FAILED, START_FAILED_CODE
from rollout.testing import PlayRollout
from tests.needs.agents.coding_clis import CODEX
from tests.needs.agents.sandboxes.conftest import WHY_NOT

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"bubblewrap does not work here: {WHY_NOT}")


def test_codex_mends_a_repository_in_bwrap(tmp_path: Path, repository: Path) -> None:
    settings = {
        "environment.executable": str(CODEX),
        "environment.sandbox": "bwrap",
        "tasks.count": "1",
        "tasks.group_size": "2",
        "run.directory": str(tmp_path),
    }
    command = [sys.executable, "-m", "rollout", "run", str(repository / "configs" / "codex.yaml")]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    end = subprocess.run(
        command, env=os.environ, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert end.returncode == 0, end.stderr + end.stdout
    assert "rollouts  2 of 2  (2 ok)" in end.stdout + end.stderr
    assert "100 % bridged" in end.stdout + end.stderr


def test_a_command_sees_the_files_that_it_names_and_none_beside_them(tmp_path: Path, play_rollout: PlayRollout) -> None:
    (tmp_path / "answers.txt").write_text("42")
    (tmp_path / "agent.py").write_text(
        "import os, sys\nbeside = os.path.dirname(sys.argv[0]) + '/answers.txt'\n"
        "print(os.getcwd(), os.environ['HOME'], os.path.exists(sys.argv[0]), os.path.exists(beside))\n"
    )
    (tmp_path / "score.py").write_text("import os\nprint(float('OPENAI_API_KEY' not in os.environ))\n")
    settings = {
        "command": ["{python}", "{config_dir}/agent.py"],
        "score": {"command": ["{python}", "{config_dir}/score.py"]},
        "config_dir": tmp_path,
        "sandbox": "bwrap",
    }
    played = play_rollout(Program, settings=settings, answers=[])
    assert played.reward == 1.0
    assert played.artifacts is not None
    printed = (played.artifacts / "output.txt").read_text()
    assert printed == "/tmp/program/work /tmp/program/home True False\n"


def test_a_signal_in_the_sandbox_is_named(play_rollout: PlayRollout) -> None:
    settings = {"command": ["sh", "-c", "kill -SEGV $$"], "score": "program", "sandbox": "bwrap"}
    played = play_rollout(Program, settings=settings, answers=[])
    assert played.trajectory.error is not None
    assert "ended by the signal 11" in played.trajectory.error["message"]


def test_a_program_that_played_cannot_fake_that_its_sandbox_did_not_start(play_rollout: PlayRollout) -> None:
    code = (
        "import json, os, sys, urllib.request as u\n"
        "body = json.dumps({'messages': [{'role': 'user', 'content': 'Hi'}]}).encode()\n"
        "head = {'Authorization': 'Bearer ' + os.environ['OPENAI_API_KEY']}\n"
        "u.urlopen(u.Request(os.environ['OPENAI_BASE_URL'] + '/chat/completions', body, head))\n"
        f"print({START_FAILED!r} + 'no such file')\nsys.exit({START_FAILED_CODE})"
    )
    settings = {"command": ["{python}", "-c", code], "score": "program", "sandbox": "bwrap"}
    played = play_rollout(Program, settings=settings, answers=["Hello."])
    assert played.trajectory.error is not None
    assert played.trajectory.error["type"] == "ProgramFailed"
