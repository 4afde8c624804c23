"""The files and the commands of docs/agents.md run, and its tables name everything that they must name.

The training of the page runs in tests/needs/torch, and the file that needs the SDK of a provider in tests/needs/agents.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rollout.environments.program_settings import (
    DIRECTORY_PLACEHOLDERS,
    PLACEHOLDERS,
    KeptFiles,
    ProcessNumbers,
    ProgramLimitKeys,
    ProgramSettings,
    ScoreCommand,
)
from rollout.gateway.foreign import ForeignReason
from rollout.programs.agents.registry import AGENTS
from tests.guide_pages import GuidePage
from tests.unit.cli.in_process import run_cli

takes_long = pytest.mark.skipif(
    os.environ.get("ROLLOUT_TESTS") not in ("ci", "full"), reason="it takes long; set ROLLOUT_TESTS=ci"
)
PAGE = GuidePage.read("agents.md")
SECTIONS: dict[str, type[BaseModel]] = {
    "keep": KeptFiles,
    "max_processes": ProcessNumbers,
    "limits": ProgramLimitKeys,
    "score": ScoreCommand,
}
BOTH_A_VALUE_AND_A_SECTION = {"score"}
TOLERANCE = 0.01
"""The number of tokens of a time changes a little."""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """All files of the page; their modules are removed from sys.modules afterwards."""
    for name, text in PAGE.files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("scores", None)


def test_every_block_of_the_page_is_a_file_or_commands() -> None:
    assert PAGE.count_blocks() == len(PAGE.files) + PAGE.count_blocks("console") + PAGE.count_blocks("sh")


def test_the_first_agent_is_short() -> None:
    assert len(PAGE.files["agent.py"].splitlines()) <= 32


@takes_long
def test_every_command_of_the_page_works(directory: Path) -> None:
    assert len(PAGE.commands) == 7
    for line in PAGE.commands:
        program, *arguments = shlex.split(line)
        if program == "rollout":
            result = run_cli(*arguments)
            assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
            if "--agent" in arguments:
                assert "yes: this agent can be trained" in result.stdout
        else:
            command = [sys.executable, "-m", program, "-p", "no:cacheprovider", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stdout


@takes_long
def test_branches_cost_what_the_page_says(directory: Path) -> None:
    runs = [line for line in PAGE.commands if "temperature=0" in line]
    rows = PAGE.rows("program")
    assert len(runs) == len(rows) == 2
    for line, (_, bridged, rendered, samples, tokens) in zip(runs, rows, strict=True):
        result = run_cli(*shlex.split(line)[1:], "--json")
        report: dict[str, Any] = json.loads(result.stdout)
        counts = report["gateway"]
        assert report["reward_mean"] == 1.0
        assert (counts["bridged"], counts["turns"] - counts["bridged"]) == (int(bridged), int(rendered))
        assert report["trainer"]["samples"] == int(samples)
        assert report["trainer"]["tokens"] == pytest.approx(int(tokens.replace(",", "")), rel=TOLERANCE)


def test_the_table_has_every_key_of_the_environment() -> None:
    keys = {name for name in ProgramSettings.model_fields if name not in SECTIONS} | BOTH_A_VALUE_AND_A_SECTION
    keys |= {f"{section}.{name}" for section, model in SECTIONS.items() for name in model.model_fields}
    assert sorted(row[0].strip("`") for row in PAGE.rows("key")) == sorted(keys)


def test_the_page_names_every_placeholder() -> None:
    assert {name for name in PLACEHOLDERS | DIRECTORY_PLACEHOLDERS if f"`{{{name}}}`" not in PAGE.text} == set()


def test_the_page_explains_every_reason_for_a_foreign_message() -> None:
    assert [row[0] for row in PAGE.rows("reason in the summary")] == [reason.value for reason in ForeignReason]


def test_the_table_has_every_known_agent_with_its_version() -> None:
    rows = {row[0].strip("`"): row for row in PAGE.rows("`agent`")}
    assert rows.keys() == AGENTS.keys()
    for name, agent in AGENTS.items():
        assert rows[name][2:4] == [", ".join(agent.tried_versions), f"`{agent.install}`"]


@takes_long
def test_the_page_explains_every_row_of_doctor(directory: Path) -> None:
    explained = {word for row in PAGE.rows("row") for word in row[0].split(", ")}
    result = run_cli("doctor", "agent.yaml", "--agent")
    shown = set(re.findall(r"^\S+  agent (\w+(?: \w+)*)  ", result.stdout, re.MULTILINE))
    assert shown == explained
