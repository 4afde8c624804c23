"""Fixtures for tests that run programs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.programs import process
from rollout.programs.workspace import Workspace
from tests.unit.programs.running import Programs, can_limit, kill, new_mark


@pytest.fixture
def temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for the workspaces and slots of this test alone."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.fixture
def programs(temporary_directory: Path) -> Iterator[Programs]:
    workspace = Workspace.create()
    made = Programs(workspace, new_mark(), temporary_directory / "output.txt")
    yield made
    for pid in made.sleepers():  # only if the test has failed
        kill(pid)
    workspace.remove()


@pytest.fixture(params=["with cgroups", "without cgroups"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine on which we may make cgroups, and one on which we may not."""
    if request.param == "without cgroups":
        monkeypatch.setattr(process, "_place", lambda: None)
    elif not can_limit("pids"):
        pytest.skip("this process may not make cgroups here")
    return str(request.param)
