"""A user's module never replaces another module of the same name, or the error names both files."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rollout.config.load import load_config
from rollout.config.source import ConfigFileError
from rollout.import_path import describe_conflict
from tests.unit.cli.in_process import run_cli

CODE = "from rollout.__main__ import main; main()"
"""The code of the command `rollout`."""


def run_rollout(*arguments: str, directory: Path, pythonpath: str = "") -> "subprocess.CompletedProcess[str]":
    """Run Python with these arguments in a directory that contains the user's modules."""
    env = {**os.environ, "PYTHONPATH": pythonpath}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(autouse=True)
def restored_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore sys.path after each test."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def config(repository: Path) -> str:
    return str(repository / "configs" / "calculator.yaml")


def test_the_current_directory_hides_nothing(tmp_path: Path, config: str) -> None:
    for module in ("transports", "queue", "json", "typing"):
        (tmp_path / f"{module}.py").write_text("raise RuntimeError('imported')\n")
    result = run_rollout("-m", "rollout", "doctor", config, directory=tmp_path)
    assert result.returncode == 0, result.stderr


def test_workers_import_nothing_from_the_current_directory(tmp_path: Path, config: str) -> None:
    for module in ("rollout", "transports", "signal"):
        (tmp_path / f"{module}.py").write_text("raise RuntimeError('imported')\n")
    settings = [f"run.directory={tmp_path}", "tasks.count=1", "tasks.group_size=1"]
    options = [option for setting in settings for option in ("--set", setting)]
    result = run_rollout("-P", "-m", "rollout", "launch", config, *options, "--json", directory=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["status"] == {"ok": 1}


@pytest.mark.parametrize("module", ["transports", "queue", "typing"])
def test_a_directory_on_pythonpath_that_hides_a_module_is_named(tmp_path: Path, config: str, module: str) -> None:
    (tmp_path / f"{module}.py").write_text("x = 1\n")
    result = run_rollout("-P", "-c", CODE, "doctor", config, directory=tmp_path, pythonpath=str(tmp_path))
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert f"two modules have the name {module}: {tmp_path}/{module}.py was imported, not " in result.stderr
    assert result.stderr.endswith("; rename yours.\n")


@pytest.fixture
def load_class(tmp_path: Path) -> Callable[[str], str]:
    """Loads a YAML with this environment class, and returns the error."""

    def load(class_path: str) -> str:
        path = tmp_path / "env.yaml"
        path.write_text(
            f"environment: {{class: '{class_path}'}}\n"
            "model: {name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}\n"
        )
        with pytest.raises(ConfigFileError) as refusal:
            load_config(path)
        return str(refusal.value)

    return load


@pytest.mark.parametrize("module", ["transports", "queue", "rollout"])
def test_a_module_beside_the_yaml_that_is_hidden_is_named(
    tmp_path: Path, load_class: Callable[[str], str], module: str
) -> None:
    (tmp_path / f"{module}.py").write_text("class Mine: pass\n")
    problem = load_class(f"{module}:Mine")
    imported = sys.modules[module].__file__
    conflict = f"two modules have the name {module}: {imported} was imported, not {tmp_path}/{module}.py; rename yours."
    assert problem == f"{tmp_path}/env.yaml:1: environment.class: {conflict}"


def test_a_hidden_package_beside_the_yaml_is_named(tmp_path: Path, load_class: Callable[[str], str]) -> None:
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "__init__.py").touch()
    assert f"queue.py was imported, not {tmp_path}/queue/__init__.py; rename yours" in load_class("queue.envs:Mine")


def test_a_hidden_module_that_an_environment_imports_is_named(tmp_path: Path, load_class: Callable[[str], str]) -> None:
    (tmp_path / "queue.py").touch()
    (tmp_path / "imports_its_queue.py").write_text("from queue import Mine\n")
    assert f"queue.py was imported, not {tmp_path}/queue.py; rename yours" in load_class("imports_its_queue:Mine")


def test_a_script_in_the_current_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script_of_its_own.py").write_text("class Silent: pass\n")
    result = run_cli("serve", "embedded", "--policy", "script_of_its_own:Silent")
    assert "The policy 'script_of_its_own:Silent' has no method answer(prompt, images)." in result.stderr


def test_a_hidden_script_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue.py").write_text("class Silent: pass\n")
    result = run_cli("serve", "embedded", "--policy", "queue:Silent")
    assert result.returncode == 2
    assert f"queue.py was imported, not {tmp_path}/queue.py; rename yours" in result.stderr


def test_another_error_names_no_module() -> None:
    assert describe_conflict(ImportError("no such name", name="json")) is None
    assert describe_conflict(ValueError("of its own")) is None
