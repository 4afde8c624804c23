"""The files of docs/agents.md and the code of the README that need the SDKs of providers, or a coding CLI."""

import importlib
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rollout import Environment, Model, Score, Task
from rollout.testing import play
from rollout.trainer import check
from tests.conftest import ROOT
from tests.needs.agents import coding_clis
from tests.needs.agents.playing import Command
from tests.needs.agents.playing import play as play_program

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


@dataclass(frozen=True)
class CodingCli:
    """How a coding CLI is started.

    Attributes:
        file: the name of its file in the guide.
        place: where it looks for this file, in its home.
        command: the command; the task comes last.
        variables: what it needs beside the variables of the endpoint; a path is in its home.
    """

    file: str
    place: str
    command: Sequence[str]
    variables: Mapping[str, str | Path]


CODEX = CodingCli(
    "config.toml",
    "codex/config.toml",
    [str(coding_clis.CODEX), "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"],
    {"CODEX_HOME": Path("codex")},
)
OPENCODE = CodingCli(
    "opencode.json",
    "config/opencode/opencode.json",
    [str(coding_clis.OPENCODE), "run", "--model", "rollout/MODEL"],
    {
        "XDG_CONFIG_HOME": Path("config"),
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
    },
)


@pytest.mark.parametrize("cli", [CODEX, OPENCODE], ids=["codex", "opencode"])
async def test_the_file_of_a_coding_cli_lets_it_play(cli: CodingCli, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / cli.place).parent.mkdir(parents=True)
    variables = {
        key: str(tmp_path / value if isinstance(value, Path) else value) for key, value in cli.variables.items()
    }

    class Greeting(Environment):
        async def run(self, task: Task, model: Model) -> Score:
            async with model.endpoint() as endpoint:
                text = FILES[cli.file].replace("BASE_URL", endpoint.base_url).replace("MODEL", endpoint.model)
                (tmp_path / cli.place).write_text(text)
                command = [word.replace("MODEL", endpoint.model) for word in cli.command]
                ended = await play_program(
                    Command([*command, "Say good day."], work, {"HOME": str(tmp_path), **variables}), endpoint
                )
            assert ended.code == 0, ended.errors
            return Score(float("Good day." in ended.output))

    played = await play(Greeting, answers=lambda conversation: "Good day.")
    assert played.reward == 1.0
