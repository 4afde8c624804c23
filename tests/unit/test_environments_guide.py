"""Every file of docs/environments.md is played, and every command in it runs, in the order of the guide."""

import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.unit.cli.in_process import run_cli

GUIDE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text("utf-8")
FILES = dict(re.findall(r"\*\*`([\w.]+)`\*\*\n\n```\w+\n(.*?)```", GUIDE, re.DOTALL))
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines()
]
ENVIRONMENTS = {
    name.removesuffix(".py"): re.findall(
        r"^class (\w+)\((?:Environment|MultiTurnEnvironment|ToolEnvironment)\)", text, re.M
    )
    for name, text in FILES.items()
    if name.endswith(".py") and not name.startswith("test_")
}
JUDGE_URL = "http://127.0.0.1:8000/v1"


class StandInJudge(BaseHTTPRequestHandler):
    """Answers every question with 7."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "message": {"role": "assistant", "content": "7"}, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def judge_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandInJudge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge_url: str) -> Iterator[Path]:
    """All files of the guide; their modules are removed from sys.modules afterwards."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.replace(JUDGE_URL, judge_url))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules_before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules_before:
        if name in ENVIRONMENTS:
            del sys.modules[name]


def test_the_guide_has_all_its_parts() -> None:
    headings = re.findall(r"^##+ (.*)$", GUIDE, re.MULTILINE)
    assert {"The first environment", "Datasets", "Tools", "Images from tools", "Rewards", "A judge", "Testing"} <= set(
        headings
    )
    assert {"Time and threads", "Debugging", "Gymnasium"} <= set(headings)
    blocks = re.findall(r"```(\w+)$", GUIDE, re.MULTILINE)
    assert len(blocks) == len(FILES) + blocks.count("console"), "a block that has no file name is never run"
    assert all(len(classes) == 1 for classes in ENVIRONMENTS.values())


def test_every_command_of_the_guide_works(directory: Path) -> None:
    for line in COMMANDS:
        program, *arguments = shlex.split(line, comments=True)
        if program == "rollout":
            result = run_cli(*arguments)
            assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
        else:
            assert program == "pytest"
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", sorted(ENVIRONMENTS))
def test_every_environment_of_the_guide_plays(module: str, directory: Path) -> None:
    (name,) = ENVIRONMENTS[module]
    config = directory / f"{module}.yaml"
    if not config.exists():
        config.write_text(
            f"environment: {{class: '{module}:{name}'}}\n"
            "tasks: {count: 2, group_size: 1}\n"
            "model: {name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}\n"
        )
    result = run_cli("run", str(config), "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["status"] == {"ok": report["rollouts"]}
    assert report["trainer"]["violations"] == 0
