"""`model.artifacts_directory()`: a session has a directory only if its policy has one."""

from dataclasses import replace
from pathlib import Path

import pytest

from rollout.environments.base import ArtifactsUnavailable
from rollout.session.session import Session
from tests.unit.session.scripted import ScriptedRollout


def test_the_directory_belongs_to_the_attempt_and_is_created_once(script: ScriptedRollout, tmp_path: Path) -> None:
    in_process = script.in_process
    session = Session(replace(in_process.session._policy, artifacts=tmp_path), in_process.stream)
    assert not list(tmp_path.iterdir())
    directory = session.artifacts_directory()
    (directory / "log.txt").write_text("kept")
    assert session.artifacts_directory() == directory
    assert (directory / "log.txt").read_text() == "kept"
    assert directory.is_relative_to(tmp_path)


def test_without_a_run_the_error_says_how_to_play_the_rollout(script: ScriptedRollout) -> None:
    with pytest.raises(ArtifactsUnavailable, match="rollout run"):
        script.in_process.session.artifacts_directory()
