"""The directories of attempts: every rollout id gives a file name of its own."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.environments.base import ArtifactsUnavailable
from rollout.rundir.artifacts import attempt_directory, create_attempt_directory

MAX_FILE_NAME_BYTES = 255


@given(rollout_id=st.text(st.characters(), min_size=1))
def test_every_rollout_id_gives_one_safe_file_name(rollout_id: str) -> None:
    directory = attempt_directory(Path("base"), rollout_id, 1)
    assert directory.parent.parent == Path("base")
    assert directory.parent.name not in (".", "..")
    assert len(directory.parent.name.encode()) <= MAX_FILE_NAME_BYTES


@pytest.mark.parametrize("rollout_id", ["../../up.0", "a/b.0", "é" * 400 + ".0", "\0.0", "..", "\ud800.0"])
def test_a_rollout_with_an_odd_id_gets_a_directory_below_the_base(tmp_path: Path, rollout_id: str) -> None:
    directory = create_attempt_directory(tmp_path, rollout_id, 2)
    assert directory.is_dir()
    assert directory.resolve().parent.parent == tmp_path.resolve()
    assert directory.name == "2"


def test_long_ids_with_the_same_beginning_have_different_directories() -> None:
    first, second = (attempt_directory(Path("base"), f"{'x' * 500}{end}", 1) for end in "ab")
    assert first != second


def test_a_directory_that_cannot_be_created_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactsUnavailable, match=str(tmp_path / "file")):
        create_attempt_directory(tmp_path / "file", "a.0", 1)
