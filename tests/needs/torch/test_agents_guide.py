"""The training of docs/agents.md runs as the page says: a tiny network, an engine, a launch and the trainer."""

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.guide_pages import GuidePage
from tests.needs.services.redis_server import free_port

PAGE = GuidePage.read("agents.md")
PORT_OF_THE_PAGE = 8000
DEADLINE = 180.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def commands(tmp_path: Path) -> list[list[str]]:
    """The commands of the page, in a directory with its files, and with a free port."""
    for name, text in PAGE.files.items():
        (tmp_path / name).write_text(text)
    port = str(free_port())
    lines = [line.replace(str(PORT_OF_THE_PAGE), port) for line in PAGE.blocks("sh")]
    start = {"python": [sys.executable], "rollout": [sys.executable, "-m", "rollout"]}
    return [start[words[0]] + words[1:] for words in map(shlex.split, lines)]


@contextmanager
def running(command: list[str], directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command in the background, and end it if it still runs."""
    with (directory / f"{command[3]}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=directory, env=ENVIRONMENT, stdout=log, stderr=log, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def wait_for_port(port: int, process: subprocess.Popen[str]) -> None:
    """Wait until the engine listens."""
    deadline = time.monotonic() + DEADLINE
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the engine ended"
        assert time.monotonic() < deadline, "the engine does not listen"
        time.sleep(0.1)


def run(command: list[str], directory: Path) -> str:
    """Run a command to its end, and return what it printed."""
    done = subprocess.run(command, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_training_of_the_page_takes_its_steps(commands: list[list[str]], tmp_path: Path) -> None:
    make_network, serve, launch, train = commands
    run(make_network, tmp_path)
    before = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    with running(serve, tmp_path) as engine:
        wait_for_port(int(serve[serve.index("--port") + 1]), engine)
        with running(launch, tmp_path) as launched:
            printed = run(train, tmp_path)
            assert launched.wait(DEADLINE) == 0, (tmp_path / "launch.log").read_text()[-3000:]
    steps = [line for line in printed.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in steps] == ["step 1", "step 2"]
    (after,) = (tmp_path / "runs" / "first" / "policy").rglob("model.safetensors")
    assert after.read_bytes() != before
