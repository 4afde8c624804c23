"""The commands and the code of the README run unchanged."""

import glob
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.guide_pages import GuidePage
from tests.unit.cli.in_process import run_cli


def test_every_text_installs_the_distribution_by_its_name(repository: Path) -> None:
    named = re.compile(r"""pip install (?:-\S+ )*['"]?(rollout[\w-]*)""")
    texts = [*repository.glob("*.md"), *(repository / "docs").glob("*.md")]
    texts += [path for package in ("rollout", "transports") for path in (repository / package).rglob("*.py")]
    found = {(path.name, name) for path in texts for name in named.findall(path.read_text("utf-8"))}
    assert {name for _, name in found} <= {"rollout-rl", "rollout-vllm"}
    assert len(found) > 5


def test_the_environment_of_the_readme_runs(repository: Path, tmp_path: Path) -> None:
    text = (repository / "README.md").read_text("utf-8")
    program = re.search(r"`squares\.py`[^\n]*:\n\n```python\n(.*?)```", text, re.DOTALL)
    config = re.search(r"`squares\.yaml`, beside it:\n\n```yaml\n(.*?)```", text, re.DOTALL)
    assert program is not None
    assert config is not None
    assert len(program[1].splitlines()) <= 25
    (tmp_path / "squares.py").write_text(program[1])
    (tmp_path / "squares.yaml").write_text(config[1])
    result = run_cli("run", str(tmp_path / "squares.yaml"), "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["reward_mean"] == 1.0
    assert report["trainer"]["violations"] == 0
    assert Path(report["run_dir"]).parent == tmp_path / "runs"


def test_the_first_commands_of_the_readme_work(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (repository / "README.md").read_text("utf-8")
    commands = re.search(r"^(rollout init hello .*?)^pytest", text, re.DOTALL | re.MULTILINE)
    assert commands is not None
    monkeypatch.chdir(tmp_path)
    for line in commands[1].splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "cd":
            monkeypatch.chdir(arguments[0])
        else:
            expanded = [path for argument in arguments for path in glob.glob(argument) or [argument]]
            result = run_cli(*expanded)
            assert result.returncode == 0, result.stdout + result.stderr


def test_the_program_of_the_readme_plays(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = re.search(r"## Agent programs.*?```yaml\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    assert environment is not None
    files = GuidePage.read("agents.md").files
    for name in ("agent.py", "scores.py", "tasks.jsonl"):
        (tmp_path / name).write_text(files[name])
    config = tmp_path / "agent.yaml"
    config.write_text(environment[1] + files["agent.yaml"][files["agent.yaml"].index("tasks:") :])
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = run_cli("run", str(config), "--json", "--set", "engine.sampling.temperature=0", "--set", "tasks.count=1")
    sys.modules.pop("scores", None)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["reward_mean"] == 1.0
