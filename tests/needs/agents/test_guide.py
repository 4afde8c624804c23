"""The files of docs/agents.md and the code of the README that need the SDKs of providers, or a coding CLI."""

import asyncio
import importlib
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollout import Environment, Model, Score, Task
from rollout.testing import Answer, play
from rollout.trainer import check
from tests.conftest import ROOT
from tests.needs.agents import coding_clis

GUIDE = (ROOT / "docs" / "agents.md").read_text("utf-8")
FILES = dict(re.findall(r"\*\*`([\w.]+)`\*\*\n\n```\w+\n(.*?)```", GUIDE, re.DOTALL))
CLIENTS = re.findall(r"^async def (\w+)\(endpoint", FILES["clients.py"], re.MULTILINE)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the guide that are Python; their modules are removed from sys.modules afterwards."""
    names = [name for name in FILES if name.endswith(".py")]
    for name in names:
        (tmp_path / name).write_text(FILES[name])
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in names:
        sys.modules.pop(name.removesuffix(".py"), None)


async def test_the_function_over_the_openai_sdk_plays(directory: Path) -> None:
    sums: Any = importlib.import_module("sums")
    played = await play(sums.Sums, Task(id="0", index=0, seed=1234), answers=["46", "Yes, 46."])
    assert played.reward == 1.0
    assert check(played.trajectory) == []
    assert [step.echo for step in played.trajectory.steps] == [None, "exact"]


@pytest.mark.parametrize("name", CLIENTS)
async def test_every_client_of_the_guide_gets_an_answer(name: str, directory: Path) -> None:
    ask = getattr(importlib.import_module("clients"), name)

    class Hello(Environment):
        async def run(self, task: Task, model: Model) -> Score:
            async with model.endpoint() as endpoint:
                return Score(float(await ask(endpoint) == "Good day."))

    played = await play(Hello, answers=["Good day."])
    assert played.reward == 1.0


async def test_the_code_of_the_readme_plays(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    code = re.search(r"## Agent programs.*?```python\n(.*?)```", readme, re.DOTALL)
    assert code is not None

    async def your_agent(client: Any, model: str, question: str) -> None:
        await client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}])

    import openai

    names: dict[str, Any] = {"Task": Task, "Model": Model, "Score": Score, "openai": openai, "your_agent": your_agent}
    exec(compile(textwrap.dedent(code[1]), "README.md", "exec"), names)
    environment = type("OfTheReadme", (Environment,), {"run": names["run"]})
    played = await play(environment, {"question": "What is 2 + 2?", "answer": "4"}, answers=["It is 4."])
    assert played.reward == 1.0


@pytest.mark.parametrize("name", ["config.toml", "opencode.json"])
async def test_the_file_of_a_coding_cli_lets_it_play(name: str, tmp_path: Path) -> None:
    arguments, variables = {
        "config.toml": (
            [coding_clis.CODEX, "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"],
            {"CODEX_HOME": tmp_path},
        ),
        "opencode.json": (
            [coding_clis.OPENCODE, "run"],
            {
                "XDG_CONFIG_HOME": tmp_path / "config",
                "OPENCODE_DISABLE_MODELS_FETCH": "1",
                "OPENCODE_DISABLE_AUTOUPDATE": "1",
            },
        ),
    }[name]
    place = {"config.toml": tmp_path / name, "opencode.json": tmp_path / "config" / "opencode" / name}[name]
    place.parent.mkdir(parents=True, exist_ok=True)
    work = tmp_path / "work"
    work.mkdir()

    class Greeting(Environment):
        async def run(self, task: Task, model: Model) -> Score:
            async with model.endpoint() as endpoint:
                text = FILES[name].replace("BASE_URL", endpoint.base_url).replace("MODEL", endpoint.model)
                place.write_text(text)
                environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **endpoint.environ}
                environ |= {key: str(value) for key, value in variables.items()}
                process = await asyncio.create_subprocess_exec(
                    *map(str, arguments),
                    *(["--model", f"rollout/{endpoint.model}"] if name == "opencode.json" else []),
                    "Say good day.",
                    cwd=work,
                    env=environ,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                )
                try:
                    output, errors = await asyncio.wait_for(process.communicate(), 100)
                finally:
                    if process.returncode is None:
                        process.kill()
            assert process.returncode == 0, errors.decode()
            return Score(float("Good day." in output.decode()))

    def answer(conversation: list[dict[str, Any]]) -> str | Answer:
        return "Good day."

    played = await play(Greeting, answers=answer)
    assert played.reward == 1.0
