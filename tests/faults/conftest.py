"""These tests kill processes and take minutes. They are collected only with ROLLOUT_TESTS=ci or full."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.launched import LaunchHarness

if os.environ.get("ROLLOUT_TESTS") not in ("ci", "full"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LaunchHarness]:
    made = LaunchHarness(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
