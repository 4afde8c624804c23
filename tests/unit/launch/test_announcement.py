"""A launch says on the trajectories queue that it runs and that it has ended, also if it fails."""

from pathlib import Path

import anyio
import pytest

from rollout.launch import announcement
from rollout.launch.announcement import announced_launch
from rollout.records.launch_status import LaunchPhase, LaunchStatus
from rollout.records.wire import decode_queue_record
from rollout.rundir.directory import RunDirectory, RunDirectoryError
from transports import Queue, QueueStorageError, open_queue


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run7")


async def phases(queue: Queue) -> list[LaunchPhase]:
    """Return the phases of the statuses in the first partition."""
    records = [decode_queue_record(record.frames) for record in await queue.peek(limit=10)]
    return [record.phase for record in records if isinstance(record, LaunchStatus) and record.partition == 0]


@pytest.mark.parametrize(("done", "phase"), [(True, LaunchPhase.DONE), (False, LaunchPhase.STOPPED)])
async def test_the_end_says_whether_every_rollout_has_ended(
    directory: RunDirectory, done: bool, phase: LaunchPhase
) -> None:
    async with open_queue("memory://announced?partitions=2") as queue:
        async with announced_launch(queue, directory, "colors", 3, is_done=lambda: done, report_failure=print):
            assert await phases(queue) == [LaunchPhase.RUNNING]
        assert await phases(queue) == [LaunchPhase.RUNNING, phase]
        (first, *_) = await queue.peek(limit=1)
        status = decode_queue_record(first.frames)
    assert isinstance(status, LaunchStatus)
    assert (status.run, status.environment, status.launch, status.directory, status.partitions) == (
        "run7",
        "colors",
        3,
        str(directory.path),
        2,
    )


async def test_a_launch_that_fails_or_is_cancelled_says_that_it_has_ended(directory: RunDirectory) -> None:
    async with open_queue("memory://announced-failure") as queue:
        with anyio.CancelScope() as scope:
            async with announced_launch(queue, directory, "colors", 3, is_done=lambda: False, report_failure=print):
                scope.cancel()
                await anyio.sleep_forever()
        assert await phases(queue) == [LaunchPhase.RUNNING, LaunchPhase.STOPPED]


async def test_a_queue_that_refuses_the_end_is_reported_and_does_not_fail_the_launch(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[str] = []

    async def refuse(*_: object) -> None:
        raise QueueStorageError("the disk is full")

    async with open_queue("memory://announced-refused") as queue:
        async with announced_launch(queue, directory, "colors", 3, is_done=lambda: True, report_failure=reports.append):
            monkeypatch.setattr(announcement, "put_in_every_partition", refuse)
    assert reports == [
        "the trainer does not learn that the launch has ended, because memory://announced-refused (queue.url): "
        "the disk is full"
    ]


async def test_a_queue_that_does_not_answer_does_not_keep_a_launch_alive(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[str] = []

    async def hang(*_: object) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(announcement, "_END_TIMEOUT", 0.01)
    async with open_queue("memory://announced-silent") as queue:
        async with announced_launch(queue, directory, "colors", 3, is_done=lambda: True, report_failure=reports.append):
            monkeypatch.setattr(announcement, "put_in_every_partition", hang)
    (text,) = reports
    assert text.endswith("it did not accept the record within 0.01 s")


def test_each_launch_of_a_run_has_the_next_number(directory: RunDirectory) -> None:
    directory.create()
    assert [directory.next_launch_number() for _ in range(3)] == [1, 2, 3]


def test_a_damaged_number_of_launches_is_an_error_that_names_the_file(directory: RunDirectory) -> None:
    directory.create()
    (directory.path / "launches").write_text("many")
    with pytest.raises(RunDirectoryError, match=r"run7/launches: the number of launches cannot be read"):
        directory.next_launch_number()
