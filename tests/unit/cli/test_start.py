"""The start of the command line: its imports, its commands, its help."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main

import rollout.cli
from rollout.cli.command_group import ORDER
from tests.unit.cli.in_process import run_cli as run_rollout

DEBUG_HELP = "Show the traceback of an error that ends the command."


def print_without_imports(code: str, modules: str) -> str:
    """Run code in a new interpreter, which must not import these modules; return what it prints."""
    check = f"\nimport sys\nimported = set('{modules}'.split()) & set(sys.modules)\nassert not imported, imported\n"
    command = [sys.executable, "-c", code + check]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_command_line_imports_no_large_library() -> None:
    assert print_without_imports("import rollout.cli", "pydantic numpy anyio aiohttp orjson torch") == ""


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["serve", "embedded", "--help"]])
def test_help_imports_no_large_library(command: Sequence[str]) -> None:
    code = f"from rollout.cli import app\ntry: app({list(command)!r})\nexcept SystemExit: pass"
    text = print_without_imports(code, "httpx numpy PIL renderers uvicorn aiohttp yaml msgpack")
    assert "embedded" not in command or "It has no neural network" in " ".join(text.split())


def test_help_lists_the_commands_in_the_order_of_use_and_each_has_a_module() -> None:
    commands = re.findall(r"^  (\w+) ", run_rollout("--help").stdout.partition("Commands:\n")[2], re.MULTILINE)
    assert commands == list(ORDER)
    (directory,) = map(Path, rollout.cli.__path__)
    assert [name for name in commands if not (directory / f"{name}.py").is_file()] == []


def leaf_commands(command: Any, name: str = "rollout") -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for inner, subcommand in command.commands.items():
        yield from leaf_commands(subcommand, f"{name} {inner}")


def test_every_command_has_the_same_option_debug() -> None:
    helps = {
        name: [option.help for option in command.params if option.name == "debug"]
        for name, command in leaf_commands(typer.main.get_command(rollout.cli.app))
    }
    assert len(helps) > 15
    assert {name: found for name, found in helps.items() if found != [DEBUG_HELP]} == {}


@pytest.mark.parametrize(
    "failing",
    [
        ("run", "none.yaml"),
        ("launch", "none.yaml"),
        ("worker", "none.yaml"),
        ("doctor", "none.yaml"),
        ("inspect", "none"),
        ("replay", "none", "0.0"),
        ("logs", "none"),
        ("queue", "stats", "file:///none"),
        ("policy", "status", "none.yaml", "--run", "none"),
        ("assets", "gc", "none"),
    ],
)
def test_an_error_is_one_message_and_with_debug_a_traceback(failing: tuple[str, ...]) -> None:
    plain, debugged = run_rollout(*failing), run_rollout(*failing, "--debug")
    assert plain.returncode == debugged.returncode != 0
    assert plain.stderr.startswith("rollout: ")
    assert "Traceback" not in plain.stderr
    assert debugged.stderr.startswith("Traceback")


def test_version_is_printed() -> None:
    assert run_rollout("--version").stdout.startswith("rollout ")


@pytest.mark.parametrize("group", [[], ["serve"], ["queue"], ["assets"], ["policy"]], ids=" ".join)
def test_help_cuts_no_sentence(group: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    commands = run_rollout(*group, "--help").stdout.partition("Commands:\n")[2]
    assert commands
    assert "..." not in commands
    assert max(map(len, commands.splitlines())) <= 80


@pytest.mark.parametrize(("typed", "meant"), [(["rn"], "run"), (["inspekt"], "inspect"), (["queue", "stat"], "stats")])
def test_the_error_for_an_unknown_command_names_the_nearest_one(typed: Sequence[str], meant: str) -> None:
    result = run_rollout(*typed)
    assert result.returncode == 2
    assert f"No such command '{typed[-1]}'. Did you mean '{meant}'" in result.stderr
