"""`rollout doctor` and `rollout launch` check that the planned rollouts fit on the disk."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rollout.config.load import load_config
from rollout.doctor.disk import DiskTooSmall, PlannedRollouts, check_disk, file_system_type
from rollout.doctor.results import CheckStatus
from rollout.rundir.directory import RunDirectoryError

SetFree = Callable[..., None]


@pytest.fixture
def set_free(monkeypatch: pytest.MonkeyPatch) -> SetFree:
    """Return a function that sets what is free on all disks."""

    def set_free(*, free_bytes: int = 1 << 40, files: int = 1 << 20, free_files: int = 1 << 20) -> None:
        found = SimpleNamespace(f_bavail=free_bytes // 4096, f_frsize=4096, f_files=files, f_favail=free_files)
        monkeypatch.setattr(os, "statvfs", lambda path: found)
        monkeypatch.setattr("rollout.doctor.disk.file_system_type", lambda path: "ext4")

    return set_free


@pytest.fixture
def plan(repository: Path) -> Callable[..., PlannedRollouts]:
    def plan(count: int | None, *settings: str) -> PlannedRollouts:
        return PlannedRollouts(load_config(repository / "configs" / "color_codeword.yaml", settings), count)

    return plan


PlanFixture = Callable[..., PlannedRollouts]


def test_what_is_free_and_what_is_written_is_shown(plan: PlanFixture, set_free: SetFree, tmp_path: Path) -> None:
    set_free(free_bytes=2 * 10**12, free_files=5000)
    result = check_disk(tmp_path / "runs" / "new", [plan(1000)])
    assert result.status is CheckStatus.OK
    assert result.message == (
        f"{tmp_path} (ext4): 2,000.0 GB and 5,000 files are free; 1,000 rollouts write at least 4.8 MB and 2,000 "
        "files, without images and logs"
    )
    assert list(tmp_path.iterdir()) == []


def test_rollouts_that_need_more_space_than_is_free_are_refused(
    plan: PlanFixture, set_free: SetFree, tmp_path: Path
) -> None:
    set_free(free_bytes=4_000_000)
    with pytest.raises(DiskTooSmall) as error:
        check_disk(tmp_path, [plan(1000)])
    assert str(error.value).startswith(
        f"{tmp_path} (ext4): 4.0 MB and 1,048,576 files are free; 1,000 rollouts write at"
    )
    assert str(error.value).endswith(
        "Free some space, put the run elsewhere (run.directory, queue.url), or play fewer tasks (tasks.count)."
    )


def test_rollouts_that_need_more_files_than_are_free_are_refused(
    plan: PlanFixture, set_free: SetFree, tmp_path: Path
) -> None:
    set_free(free_files=1999)
    with pytest.raises(DiskTooSmall, match=r"1,999 files are free; 1,000 rollouts write .* and 2,000 files"):
        check_disk(tmp_path, [plan(1000)])


def test_the_rollouts_of_all_environments_are_added(plan: PlanFixture, set_free: SetFree, tmp_path: Path) -> None:
    set_free(free_files=2000)
    assert check_disk(tmp_path, [plan(500), plan(500)]).status is CheckStatus.OK
    with pytest.raises(DiskTooSmall, match="1,001 rollouts"):
        check_disk(tmp_path, [plan(500), plan(501)])


def test_a_file_system_without_a_limit_for_files_is_not_blamed(
    plan: PlanFixture, set_free: SetFree, tmp_path: Path
) -> None:
    set_free(files=0, free_files=0)
    result = check_disk(tmp_path, [plan(1000)])
    assert result.status is CheckStatus.OK
    assert "GB are free" in result.message


def test_records_that_the_queue_does_not_keep_are_not_counted(
    plan: PlanFixture, set_free: SetFree, tmp_path: Path
) -> None:
    set_free()
    kept = check_disk(tmp_path, [plan(1000)])
    read = check_disk(tmp_path, [plan(1000, "queue.url=file://{run_dir}/trajectories")])
    elsewhere = check_disk(tmp_path, [plan(1000, "queue.url=redis://127.0.0.1/0")])
    assert "at least 4.8 MB" in kept.message
    assert "at least 4.1 MB" in read.message
    assert "at least 4.1 MB" in elsewhere.message


def test_a_disk_that_a_full_queue_does_not_fit_on_is_unknown(
    plan: PlanFixture, set_free: SetFree, tmp_path: Path
) -> None:
    set_free(free_bytes=100_000_000)
    result = check_disk(tmp_path, [plan(10)])
    assert result.status is CheckStatus.UNKNOWN
    assert "the queue may hold 268.4 MB before workers wait for the trainer, but 100.0 MB are free" in result.message


def test_rollouts_that_are_not_counted_need_an_unknown_space(
    plan: PlanFixture, set_free: SetFree, tmp_path: Path
) -> None:
    set_free()
    result = check_disk(tmp_path, [plan(None)])
    assert result.status is CheckStatus.OK
    assert "how much the rollouts write is not known before the run" in result.message


def test_a_directory_that_cannot_be_written_is_an_error(plan: PlanFixture, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    with pytest.raises(
        RunDirectoryError, match=rf"cannot be written: Not a directory\. Make {tmp_path}/a_file writable"
    ):
        check_disk(tmp_path / "a_file" / "runs", [plan(1)])


def test_the_deepest_mount_point_names_the_file_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounts = [(Path("/"), "ext4"), (tmp_path, "nfs4"), (tmp_path, "tmpfs"), (tmp_path / "other", "xfs")]
    monkeypatch.setattr("rollout.doctor.disk._mounts", lambda: iter(mounts))
    assert file_system_type(tmp_path / "new") == "tmpfs"
    assert file_system_type(tmp_path.parent) == "ext4"


def test_a_directory_in_memory_is_named_as_such(plan: PlanFixture, set_free: SetFree, tmp_path: Path) -> None:
    set_free()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rollout.doctor.disk.file_system_type", lambda path: "tmpfs")
        assert "it is in memory, so a restart of the machine deletes it" in check_disk(tmp_path, [plan(1)]).message


def test_a_directory_below_a_link_to_nothing_is_measured_where_the_link_is(plan: PlanFixture, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    planned = plan(1, f"queue.url=file://{tmp_path}/link/queue")
    assert str(tmp_path) in check_disk(tmp_path / "runs", [planned]).message
