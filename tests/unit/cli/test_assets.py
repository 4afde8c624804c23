"""`rollout assets` with the images of a real run."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

from rollout.rundir.artifacts import attempt_directory
from rollout.rundir.assets import hold_run_lock
from rollout.rundir.directory import RunDirectory
from rollout.trainer.testing import put_all, scripted_rollout
from tests.unit.cli.in_process import run_cli, set_options
from transports import open_queue

REFERRED_TO = "0" * 64 + ".png"


def report(*arguments: str, code: int = 0) -> Any:
    result = run_cli("assets", *arguments, "--json")
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def run_dir(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("runs")
    options = set_options("tasks.count=2", "tasks.group_size=1", "environment.image_size=32", f"run.directory={parent}")
    assert run_cli("run", str(repository / "configs" / "color_codeword.yaml"), *options).returncode == 0
    (directory,) = parent.iterdir()
    return directory


def test_stats_and_verify_count_the_images_of_a_run(run_dir: Path) -> None:
    assert report("stats", str(run_dir))["files"] == 8
    assert report("verify", str(run_dir)) == {"checked": 8, "problems": []}
    assert "8 images" in run_cli("assets", "stats", str(run_dir)).stdout


def test_gc_keeps_new_images_and_those_of_records(run_dir: Path) -> None:
    images = run_dir / "assets" / "images"
    unused = images / ("0" * 64 + ".png")
    unused.write_bytes(b"no record refers to this")
    assert report("gc", str(run_dir))["kept_young"] == 1
    os.utime(unused, (0, 0))
    assert report("gc", str(run_dir), "--dry-run")["removed"] == [unused.name]
    assert unused.exists()
    found = report("gc", str(run_dir), "--grace", "0")
    assert found["removed"] == [unused.name]
    assert found["kept_referenced"] == 8
    assert not unused.exists()


def test_gc_neither_counts_nor_removes_the_artifacts_of_attempts(run_dir: Path) -> None:
    directory = attempt_directory(RunDirectory(run_dir).artifacts_path("color_codeword"), "000000.0", 1)
    directory.mkdir(parents=True)
    for name in ("output.txt", "0" * 64 + ".png"):
        (directory / name).write_bytes(b"of a program")
        os.utime(directory / name, (0, 0))
    counted = report("stats", str(run_dir))
    assert report("gc", str(run_dir), "--grace", "0")["removed"] == []
    assert len(list(directory.iterdir())) == 2
    assert report("stats", str(run_dir)) == counted
    assert (counted["files"], counted["foreign"]) == (8, 0)


def test_verify_names_a_damaged_image(run_dir: Path) -> None:
    damaged = sorted((run_dir / "assets" / "images").iterdir())[0]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])
    try:
        (problem,) = report("verify", str(run_dir), code=1)["problems"]
        assert problem["file"] == damaged.name
    finally:
        damaged.write_bytes(content)


def test_gc_is_refused_while_a_process_uses_the_run(run_dir: Path) -> None:
    with hold_run_lock(run_dir):
        result = run_cli("assets", "gc", str(run_dir))
    assert result.returncode == 1
    assert "is locked" in result.stderr


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a run with two images and the queue of the given URL."""

    def make(url: str) -> Path:
        images = tmp_path / "run" / "assets" / "images"
        images.mkdir(parents=True)
        for name in (REFERRED_TO, "f" * 64 + ".png"):
            (images / name).touch()
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"queue": {"url": url}, "run": {"name": "env"}}))
        return tmp_path / "run"

    return make


def test_gc_keeps_images_of_records_in_another_directory(tmp_path: Path, make_run: Callable[[str], Path]) -> None:
    url = f"file://{tmp_path}/queues/env?partitions=2"

    async def record() -> None:
        async with open_queue(url) as queue:
            await put_all(queue, await scripted_rollout(turns=1, image_tokens=4))

    anyio.run(record)
    run = make_run(url.replace("env", "{environment}"))
    assert report("gc", str(run), "--grace", "0")["removed"] == ["f" * 64 + ".png"]
    assert (run / "assets" / "images" / REFERRED_TO).exists()


@pytest.mark.parametrize(
    ("url", "complaint"), [("memory://gone", "cannot be read here"), ("file:///nowhere/at/all", "nowhere")]
)
def test_gc_is_refused_if_the_records_cannot_be_read(make_run: Callable[[str], Path], url: str, complaint: str) -> None:
    run = make_run(url)
    result = run_cli("assets", "gc", str(run), "--grace", "0")
    assert result.returncode == 1
    assert complaint in result.stderr
    assert len(list((run / "assets" / "images").iterdir())) == 2


def test_gc_is_refused_without_trajectories_and_configuration(tmp_path: Path) -> None:
    (tmp_path / "assets" / "images").mkdir(parents=True)
    result = run_cli("assets", "gc", str(tmp_path))
    assert result.returncode == 1
    assert "neither trajectories nor the configuration" in result.stderr
