"""The start of the command line: what it imports, and where its commands are."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import rollout.cli
from tests.unit.cli.in_process import run_cli as run_rollout


def python(code: str) -> "subprocess.CompletedProcess[str]":
    """Run code in a new interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)


def test_the_command_line_imports_nothing_heavy() -> None:
    result = python(
        "import sys\n"
        "import rollout.cli\n"
        "heavy = {'pydantic', 'numpy', 'anyio', 'aiohttp', 'orjson', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["serve", "embedded", "--help"]])
def test_help_imports_nothing_heavy(command: Sequence[str]) -> None:
    code = (
        "import sys\n"
        "from rollout.cli import app\n"
        f"try: app({list(command)!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'httpx', 'numpy', 'PIL', 'renderers', 'uvicorn', 'aiohttp', 'yaml', 'msgpack'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, result.stderr
    if "embedded" in command:
        assert "No neural network is inside" in " ".join(result.stdout.split())


def test_every_command_has_a_module_of_its_name() -> None:
    commands = re.findall(r"^  (\w+) ", run_rollout("--help").stdout.partition("Commands:\n")[2], re.MULTILINE)
    assert set(commands) >= {"run", "worker", "launch", "doctor", "inspect", "serve", "assets", "queue", "policy"}
    (directory,) = map(Path, rollout.cli.__path__)
    assert [name for name in commands if not (directory / f"{name}.py").is_file()] == []


def test_version_is_told() -> None:
    assert run_rollout("--version").stdout.startswith("rollout ")
