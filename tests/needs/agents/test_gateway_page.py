"""The clients of docs/gateway.md play in the process of the worker."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollout import Environment, Model, Score, Task
from rollout.testing import play
from tests.guide_pages import GuidePage

FILE = GuidePage.read("gateway.md").files["clients.py"]
CLIENTS = re.findall(r"^async def (\w+)\(endpoint", FILE, re.MULTILINE)


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the page; it is removed from sys.modules afterwards."""
    (tmp_path / "clients.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("clients")
    sys.modules.pop("clients")


@pytest.mark.parametrize("name", CLIENTS)
async def test_every_client_of_the_page_gets_an_answer(name: str, clients: Any) -> None:
    ask = getattr(clients, name)

    class Hello(Environment):
        async def run(self, task: Task, model: Model) -> Score:
            async with model.endpoint() as endpoint:
                return Score(float(await ask(endpoint) == "Good day."))

    played = await play(Hello, answers=["Good day."])
    assert played.reward == 1.0
