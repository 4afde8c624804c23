"""The file of docs/agents.md that needs the SDK of a provider, and its table of clients."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rollout import Task
from rollout.testing import play
from rollout.trainer import check
from tests.conftest import ROOT
from tests.guide_pages import GuidePage
from tests.needs.agents.clients import CLIENTS, Client

PAGE = GuidePage.read("agents.md")


async def test_the_function_over_the_openai_sdk_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sums.py").write_text(PAGE.files["sums.py"])
    monkeypatch.syspath_prepend(tmp_path)
    sums: Any = importlib.import_module("sums")
    played = await play(sums.Sums, Task(id="0", index=0, seed=1234), answers=["46", "Yes, 46."])
    sys.modules.pop("sums")
    assert played.reward == 1.0
    assert check(played.trajectory) == []
    assert [step.echo for step in played.trajectory.steps] == [None, "exact"]


def test_the_configuration_of_the_function_runs(tmp_path: Path) -> None:
    for name in ("sums.py", "sums.yaml"):
        (tmp_path / name).write_text(PAGE.files[name])
    command = [sys.executable, "-m", "rollout", "run", "sums.yaml"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "16 of 16  (16 ok)" in done.stdout
    assert "reasoning dropped 16" in done.stdout


def test_the_table_has_every_client_that_is_tested_with_its_dialects() -> None:
    shown = {(row[0].partition(" (")[0], row[1]) for row in PAGE.rows("client") if "by hand" not in row[-1]}
    assert shown == {(_name_in_table(client), client.dialect) for client in CLIENTS}


def test_the_table_says_which_clients_drop_the_reasoning() -> None:
    dropping = {(row[0].partition(" (")[0], row[1]) for row in PAGE.rows("client") if row[4] == "dropped"}
    assert dropping == {(_name_in_table(client), client.dialect) for client in CLIENTS if not client.keeps_reasoning}


def _name_in_table(client: Client) -> str:
    name = client.name.partition(f"_{client.dialect}")[0]
    return {"agents_sdk": "openai-agents"}.get(name, name.replace("_", "-"))
