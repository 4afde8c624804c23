"""A machine that lacks something that the environment needs: one error, and nothing is played."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.cli.in_process import run_cli

ENVIRONMENT = """
import sys
from rollout import Environment, Score
from rollout.errors import ConfigurationError

class Sails(Environment):
    @classmethod
    def check_machine(cls, settings):
        {check}

    async def run(self, task, model):
        return Score(1.0)
"""
MISSING = "raise ConfigurationError('the compass is missing; install it.')"
ONLY_IN_WORKERS = f"if sys.argv[1] == 'worker': {MISSING}"
WriteConfig = Callable[[str], Path]


@pytest.fixture
def write_config(tmp_path: Path) -> WriteConfig:
    def write(check: str) -> Path:
        module = f"sails_{tmp_path.name}"
        (tmp_path / f"{module}.py").write_text(ENVIRONMENT.format(check=check))
        config = tmp_path / "sails.yaml"
        config.write_text(
            f"environment: {{class: '{module}:Sails'}}\ntasks: {{count: 2}}\nrun: {{name: sails, directory: runs}}\n"
            "model: {name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}\n"
        )
        return config

    return write


def files_of_runs(config: Path, pattern: str) -> list[Path]:
    return sorted((config.parent / "runs").glob(f"*/{pattern}"))


@pytest.mark.parametrize("command", ["run", "launch"])
def test_a_run_and_a_launch_end_with_what_is_missing_before_they_play(write_config: WriteConfig, command: str) -> None:
    config = write_config(MISSING)
    result = run_cli(command, str(config))
    assert result.returncode == 2
    assert "rollout: the compass is missing; install it.\n" in result.stderr
    assert files_of_runs(config, "claims/*/*") == []
    assert files_of_runs(config, "workers/*") == []


def test_an_error_in_the_check_shows_the_line_of_the_user(write_config: WriteConfig) -> None:
    config = write_config("open('/no/such/file')")
    result = run_cli("launch", str(config))
    assert result.returncode == 2
    assert "Sails.check_machine (" in result.stderr
    assert "open('/no/such/file')" in result.stderr
    assert "environment_class.py" not in result.stderr


def test_a_launch_whose_workers_lack_something_ends_at_the_first_one(write_config: WriteConfig) -> None:
    config = write_config(ONLY_IN_WORKERS)
    result = run_cli("launch", str(config), "--json")
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"] == (
        "the workers of sails cannot start: the compass is missing; install it."
    )
    (output,) = files_of_runs(config, "workers/*.out")
    assert output.read_text() == "rollout: the compass is missing; install it.\n"
    assert files_of_runs(config, "claims/*/*") == []


def test_a_worker_alone_ends_with_what_is_missing(write_config: WriteConfig) -> None:
    config = write_config(MISSING)
    command = [sys.executable, "-m", "rollout", "worker", str(config), "--run", str(config.parent / "run")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert "rollout: the compass is missing; install it.\n" in result.stderr


@pytest.mark.parametrize("command", ["run", "launch"])
def test_a_machine_that_has_everything_plays(write_config: WriteConfig, command: str) -> None:
    result = run_cli(command, str(write_config("return 'a compass'")), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["status"] == {"ok": 8}
