"""`rollout assets`: on the images of a real run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rollout.images.maintenance import hold_run
from tests.cli.in_process import rollout


def report(*arguments: str, code: int = 0) -> Any:
    result = rollout("assets", *arguments, "--json")
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def run_dir(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("runs")
    settings = ("tasks.count=2", "tasks.group_size=1", "environment.image_size=32", f"run.directory={parent}")
    config = str(repository / "configs" / "color_codeword.yaml")
    assert rollout("run", config, *(a for s in settings for a in ("--set", s))).returncode == 0
    (made,) = parent.iterdir()
    return made


def test_stats_and_verify_on_a_sound_run(run_dir: Path) -> None:
    assert report("stats", str(run_dir))["files"] == 8
    assert report("verify", str(run_dir)) == {"checked": 8, "problems": []}
    assert "8 images" in rollout("assets", "stats", str(run_dir)).stdout


def test_gc_keeps_what_records_refer_to_and_what_is_young(run_dir: Path) -> None:
    images = run_dir / "assets" / "images"
    stray = images / ("0" * 64 + ".png")
    stray.write_bytes(b"nobody refers to this")
    assert report("gc", str(run_dir))["kept_young"] == 1
    os.utime(stray, (0, 0))
    assert report("gc", str(run_dir), "--dry-run")["removed"] == [stray.name]
    assert stray.exists()
    found = report("gc", str(run_dir), "--grace", "0")
    assert found["removed"] == [stray.name]
    assert found["kept_referenced"] == 8
    assert not stray.exists()


def test_verify_names_a_damaged_image(run_dir: Path) -> None:
    damaged = sorted((run_dir / "assets" / "images").iterdir())[0]
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[:-1])
    try:
        (problem,) = report("verify", str(run_dir), code=1)["problems"]
        assert problem["file"] == damaged.name
    finally:
        damaged.write_bytes(sound)


def test_gc_is_refused_while_the_run_is_held(run_dir: Path) -> None:
    with hold_run(run_dir):
        result = rollout("assets", "gc", str(run_dir))
    assert result.returncode == 1
    assert "is held" in result.stderr


def test_gc_is_refused_where_the_records_are_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "assets" / "images").mkdir(parents=True)
    result = rollout("assets", "gc", str(tmp_path))
    assert result.returncode == 1
    assert "holds no trajectories" in result.stderr
