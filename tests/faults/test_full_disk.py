"""A disk that fills up during a launch. Needs root, to mount it."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from rollout.trainer import open_archive
from tests.faults.launched import LaunchHarness

CONFIG = Path(__file__).parents[2] / "configs" / "color_codeword.yaml"


def fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a disk")
@pytest.mark.parametrize("full_from", ["worker started", "worker ready"])
async def test_a_full_disk_ends_a_launch_and_the_resumed_one_plays_each_rollout_once(
    world: LaunchHarness, small_disk: Callable[[str], Path], full_from: str
) -> None:
    disk = small_disk("32m")
    world.directory.joinpath("runs").symlink_to(disk)
    settings = {
        "tasks.count": 12,
        "images.mode": "inline",
        "worker.restarts": 2,
        "queue.url": "file://{run_dir}/trajectories?retain=true",
    }
    launched = world.launch(CONFIG, settings, "--workers=2")
    launched.wait_until(lambda: any(entry["event"] == full_from for entry in launched.log()))
    filling = disk / "filling"
    fill(filling)
    out, err = launched.process.communicate(timeout=120)
    assert launched.process.returncode == 1, err
    assert "No space left on device" in json.loads(out)["error"]
    assert "Traceback" not in err

    filling.unlink()
    run_dir = launched.run_dir
    assert run_dir is not None
    assert [text for file in (run_dir / "workers").glob("*.out") if "Traceback" in (text := file.read_text())] == []
    report = world.resume(run_dir, {}, "--workers=2").report(seconds=120)
    assert report["status"] == {"ok": report["total"]}
    async with open_archive(run_dir) as reader:
        rollouts = [trajectory.rollout async for trajectory in reader]
    assert len(rollouts) == len(set(rollouts)) == report["total"]
