"""The code of docs/agents.md and docs/gateway.md that needs the SDKs of providers, and the table of clients."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollout import Environment, Model, Score, Task
from rollout.testing import play
from rollout.trainer import check
from tests.guide_pages import GuidePage
from tests.needs.agents.clients import CLIENTS, Client

AGENTS, GATEWAY = GuidePage.read("agents.md"), GuidePage.read("gateway.md")
FILES = {name: text for page in (AGENTS, GATEWAY) for name, text in page.files.items()}
ASKING = re.findall(r"^async def (\w+)\(endpoint", FILES["clients.py"], re.MULTILINE)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules `sums` and `clients`; they are removed from sys.modules afterwards."""
    for name in ("sums", "clients"):
        (tmp_path / f"{name}.py").write_text(FILES[f"{name}.py"])
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("sums", "clients"):
        sys.modules.pop(name, None)


async def test_the_function_over_the_openai_sdk_plays() -> None:
    sums: Any = importlib.import_module("sums")
    played = await play(sums.Sums, Task(id="0", index=0, seed=1234), answers=["46", "Yes, 46."])
    assert played.reward == 1.0
    assert check(played.trajectory) == []
    assert [step.echo for step in played.trajectory.steps] == [None, "exact"]


@pytest.mark.parametrize("name", ASKING)
async def test_every_client_of_the_page_gets_an_answer(name: str) -> None:
    ask = getattr(importlib.import_module("clients"), name)

    class Hello(Environment):
        async def run(self, task: Task, model: Model) -> Score:
            async with model.endpoint() as endpoint:
                return Score(float(await ask(endpoint) == "Good day."))

    played = await play(Hello, answers=["Good day."])
    assert played.reward == 1.0


def test_the_table_has_every_client_that_is_tested_with_its_dialects() -> None:
    shown = {(row[0].partition(" (")[0], row[1]) for row in AGENTS.rows("client") if "by hand" not in row[-1]}
    assert shown == {(_name_in_table(client), client.dialect) for client in CLIENTS}


def _name_in_table(client: Client) -> str:
    name = client.name.partition(f"_{client.dialect}")[0]
    return {"agents_sdk": "openai-agents"}.get(name, name.replace("_", "-"))
