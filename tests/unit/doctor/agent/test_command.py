"""`rollout doctor --agent`: its output and its exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.unit.cli.in_process import run_cli


def test_an_agent_that_can_be_trained_ends_the_report_with_yes(repository: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    config = str(repository / "configs" / "program.yaml")
    result = run_cli("doctor", config, "--agent", "--set", f"run.directory={runs}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "ok  agent  yes: this agent can be trained"
    plays = [line for line in result.stderr.splitlines() if line.startswith("rollout: play ")]
    assert len(plays) == 10
    assert plays[0] == "rollout: play 1 of 5: a normal rollout"
    assert re.fullmatch(r"rollout: play 1 of 5 ended after \d+\.\d s", plays[1])
    assert not runs.exists()


def test_an_environment_without_a_program_is_no(repository: Path, tmp_path: Path) -> None:
    config = str(repository / "configs" / "color_codeword.yaml")
    command = ("doctor", config, "--agent", "--set", f"run.directory={tmp_path / 'runs'}")
    result = run_cli(*command)
    assert result.returncode == 1
    last = result.stdout.splitlines()[-1]
    assert last == "bad  agent  no: start: the environment opens no endpoint, so it plays no program"
    report = json.loads(run_cli(*command, "--json").stdout)
    assert report["agent"] == {"can_be_trained": False, "verdict": last.removeprefix("bad  agent  ")}
    assert report["checks"][-1]["status"] == "bad"


def test_a_bad_configuration_plays_nothing(repository: Path) -> None:
    config = str(repository / "configs" / "color_codeword.yaml")
    result = run_cli("doctor", config, "--agent", "--set", "queue.url=file://{run_dir}/t?high_water=80KB")
    assert result.returncode == 2
    assert "?  agent  not checked: first correct the errors above" in result.stdout
    assert "play 1" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_check_that_is_ended_leaves_no_files_and_no_processes(tmp_path: Path, number: signal.Signals) -> None:
    pid_path = tmp_path / "pid"
    program = f"import os, time\nopen({str(pid_path)!r}, 'w').write(str(os.getpid()) + ' ')\ntime.sleep(3600)"
    environment = {
        "class": "rollout.environments.program:Program",
        "command": ["{python}", "-c", program],
        "score": "program",
    }
    (tmp_path / "tasks.jsonl").write_text("{}\n")
    (tmp_path / "agent.yaml").write_text(
        json.dumps(
            {
                "environment": environment,
                "tasks": {"source": "tasks.jsonl"},
                "model": {"name": "policy", "path": "builtin:tiny", "renderer": "qwen3"},
            }
        )
    )
    with tempfile.TemporaryDirectory() as temporary:
        process = subprocess.Popen(
            [sys.executable, "-m", "rollout", "doctor", str(tmp_path / "agent.yaml"), "--agent"],
            env={**os.environ, "TMPDIR": temporary},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            deadline = time.monotonic() + 60
            while not (pid_path.exists() and pid_path.read_text().endswith(" ")):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert any(name.startswith("doctor-") for name in os.listdir(temporary))
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 130, err
        assert [name for name in os.listdir(temporary) if not name.startswith("rollout-slots-")] == []
    assert not Path(f"/proc/{pid_path.read_text().strip()}").exists()
