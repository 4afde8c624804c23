"""A launch says on the trajectories queue that it runs and that it has ended, also if it fails."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import pytest

from rollout.launch import announcement
from rollout.launch.announcement import announced_launch
from rollout.records.announcing import put_in_every_partition
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


def announce(
    queue: Queue, directory: RunDirectory, phase: LaunchPhase, report: Callable[[str], None] = print
) -> AbstractAsyncContextManager[None]:
    return announced_launch(queue, directory, "colors", 3, end_phase=lambda: phase, report=report)


@pytest.mark.parametrize("phase", [LaunchPhase.DONE, LaunchPhase.STOPPED])
async def test_the_end_says_whether_every_rollout_has_ended(directory: RunDirectory, phase: LaunchPhase) -> None:
    async with open_queue("memory://announced?partitions=2") as queue:
        async with announce(queue, directory, phase):
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
            async with announce(queue, directory, LaunchPhase.STOPPED):
                scope.cancel()
                await anyio.sleep_forever()
        assert await phases(queue) == [LaunchPhase.RUNNING, LaunchPhase.STOPPED]


async def test_a_queue_that_refuses_the_end_is_reported_and_does_not_fail_the_launch(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[str] = []

    async def refuse(*_: object) -> None:
        raise QueueStorageError("the disk is full")

    monkeypatch.setattr(announcement, "_END_TIMEOUT", 0.05)
    async with open_queue("memory://announced-refused") as queue:
        async with announce(queue, directory, LaunchPhase.DONE, reports.append):
            monkeypatch.setattr(announcement, "put_in_every_partition", refuse)
    (text,) = reports
    assert text.startswith(
        "the trainer does not learn that the launch has ended, because memory://announced-refused (queue.url) did not "
        "accept it: the disk is full"
    )


async def test_a_queue_that_does_not_answer_does_not_keep_a_launch_alive(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[str] = []

    async def hang(*_: object) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(announcement, "_END_TIMEOUT", 0.01)
    monkeypatch.setattr(announcement, "_RETRY_SECONDS", 0.01)
    async with open_queue("memory://announced-silent") as queue:
        async with announce(queue, directory, LaunchPhase.DONE, reports.append):
            monkeypatch.setattr(announcement, "put_in_every_partition", hang)
    (text,) = reports
    assert "it did not answer within 0.01 s" in text


async def test_a_launch_whose_workers_play_on_announces_no_end(directory: RunDirectory) -> None:
    async with open_queue("memory://announced-open") as queue:
        async with announce(queue, directory, LaunchPhase.RUNNING):
            pass
        assert await phases(queue) == [LaunchPhase.RUNNING]


async def test_a_launch_waits_for_room_in_a_full_queue(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcement, "_RETRY_SECONDS", 0.01)
    reports: list[str] = []
    async with open_queue("memory://announced-full?high_water=1000&hard_limit=1000") as queue:
        await queue.put((bytes(1000),), key="k")

        async def consume() -> None:
            while not reports:  # noqa: ASYNC110 - the launch polls too
                await anyio.sleep(0.001)
            delivery = await queue.receive(timeout=1)
            assert delivery is not None
            await delivery.ack()

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(consume)
            async with announce(queue, directory, LaunchPhase.DONE, reports.append):
                assert await phases(queue) == [LaunchPhase.RUNNING]
    (text,) = reports
    assert text.startswith("waiting for a trainer, because the queue is full: memory://announced-full")


async def test_a_launch_that_is_stopped_while_it_announces_itself_says_that_it_has_ended(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def put_half(queue: Queue, status: LaunchStatus) -> None:
        await put_in_every_partition(queue, status)
        if status.phase is LaunchPhase.RUNNING:
            await anyio.sleep_forever()

    monkeypatch.setattr(announcement, "put_in_every_partition", put_half)
    async with open_queue("memory://announced-half") as queue:
        with anyio.move_on_after(0.05):
            async with announce(queue, directory, LaunchPhase.STOPPED):
                pytest.fail("the launch was announced")
        assert await phases(queue) == [LaunchPhase.RUNNING, LaunchPhase.STOPPED]


def test_each_launch_of_a_run_has_the_next_number(directory: RunDirectory) -> None:
    directory.create()
    assert [directory.next_launch_number() for _ in range(3)] == [1, 2, 3]


def test_a_damaged_number_of_launches_is_an_error_that_names_the_file(directory: RunDirectory) -> None:
    directory.create()
    (directory.path / "launches").write_text("many")
    with pytest.raises(RunDirectoryError, match=r"run7/launches: the number of launches cannot be read"):
        directory.next_launch_number()
