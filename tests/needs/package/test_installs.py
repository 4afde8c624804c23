"""The installed wheel plays a user's environment, on every Python, with the newest and the lowest versions."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.needs.package.installs import InstalledRollout

_CONFIG = """
environment: {class: "acme_squares:Squares"}
tasks: {count: 4, group_size: 2}
model: {name: tiny-qwen3-vl, path: "builtin:tiny", renderer: qwen3-vl}
engine: {sampling: {temperature: 0}}
run: {name: squares}
"""

_TRAINER = """
import sys

import anyio

from rollout.trainer import TrajectoryReader, check, samples
from transports import open_queue


async def train(url):
    async with TrajectoryReader(open_queue(url)) as reader:
        for _ in range(8):
            trajectory = await reader.receive(timeout=60)
            assert trajectory is not None and trajectory.reward == 1.0, trajectory
            assert not check(trajectory)
            assert all(sample.mask.any() for sample in samples(trajectory))
        await reader.commit()
        assert await reader.receive(timeout=0.5) is None


anyio.run(train, sys.argv[1])
print("8 trajectories")
"""


@pytest.fixture(scope="session")
def config(installed: InstalledRollout) -> Path:
    path = installed.work / "squares.yaml"
    path.write_text(_CONFIG)
    return path


def _output_of(finished: "subprocess.CompletedProcess[str]") -> str:
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_nothing_is_imported_from_the_checkout(installed: InstalledRollout, repository: Path) -> None:
    script = "import os, sys, rollout, transports as t; print(rollout.__file__, t.__file__, os.listdir(sys.argv[1]))"
    rollout_file, transports_file, listed = _output_of(installed.run("python", "-c", script, repository)).split(
        maxsplit=2
    )
    assert Path(rollout_file).is_relative_to(installed.path)
    assert Path(transports_file).is_relative_to(installed.path)
    assert listed.strip() == "[]"


def test_help_is_printed(installed: InstalledRollout) -> None:
    assert "launch" in _output_of(installed.run("rollout", "--help"))


def test_the_version_is_printed(installed: InstalledRollout) -> None:
    assert _output_of(installed.run("rollout", "--version")).startswith("rollout ")


def test_doctor_finds_nothing_wrong(installed: InstalledRollout, config: Path) -> None:
    assert "bad" not in _output_of(installed.run("rollout", "doctor", config))


def test_a_run_plays_every_rollout(installed: InstalledRollout, config: Path) -> None:
    report = json.loads(_output_of(installed.run("rollout", "run", config, "--json")))
    assert report["status"] == {"ok": 8}
    assert report["reward_mean"] == 1.0


def test_a_launch_of_two_workers_is_read_by_a_trainer(installed: InstalledRollout, config: Path) -> None:
    run_directory = installed.work / "launched"
    launched = installed.run("rollout", "launch", config, "--workers", "2", "--run", run_directory, "--json")
    assert json.loads(_output_of(launched))["status"] == {"ok": 8}
    trainer = installed.work / "trainer.py"
    trainer.write_text(_TRAINER)
    read = installed.run("python", trainer, f"file://{run_directory}/trajectories?retain=true")
    assert _output_of(read) == "8 trajectories\n"


def test_an_embedded_engine_serves_a_run(installed: InstalledRollout, config: Path) -> None:
    with installed.serve("embedded", "builtin:tiny", "--allow", installed.work) as url:
        options = ("--set", f"engine.urls=[{url}]", "--json")
        report = json.loads(_output_of(installed.run("rollout", "run", config, *options)))
        assert report["status"] == {"ok": 8}


def test_the_files_of_init_can_be_played(installed: InstalledRollout) -> None:
    _output_of(installed.run("rollout", "init", "hello"))
    played = installed.run("rollout", "run", "hello.yaml", directory=installed.work / "hello")
    assert "reward" in _output_of(played)


def test_the_files_of_init_pass_their_own_test(installed: InstalledRollout) -> None:
    templates = ("chat", "images", "tools", "agent", "gym")
    installed.install("pytest", "gymnasium")
    for template in templates:
        _output_of(installed.run("rollout", "init", f"tested_{template}", "--template", template))
    files = [f"tested_{template}/test_tested_{template}.py" for template in templates]
    tested = installed.run("python", "-m", "pytest", "-q", *files)
    assert "10 passed" in _output_of(tested)
