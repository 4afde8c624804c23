"""A reader ends when the launches have ended and everything is consumed, and says for what it waits otherwise."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from rollout.records.announcing import put_in_every_partition
from rollout.records.launch_status import LaunchPhase, LaunchStatus
from rollout.records.wire import encode_status
from rollout.trainer import (
    BlockingReader,
    Group,
    GroupPolicy,
    ReaderSettings,
    ReaderStateError,
    TrajectoryReader,
    merge_states,
    open_reader,
)
from rollout.trainer.reading import end
from rollout.trainer.reading import reader as reader_module
from rollout.trainer.reading.consumed import ConsumedRollouts
from rollout.trainer.testing import scripted_rollout
from tests.unit.trainer.readers import QUEUE, backlog, reader_of
from transports import Queue, open_queue

RUNNING = LaunchStatus("run", "Scripted", 1, LaunchPhase.RUNNING, "/data/run", socket.gethostname(), os.getpid())
STOPPED, DONE = (replace(RUNNING, phase=phase) for phase in (LaunchPhase.STOPPED, LaunchPhase.DONE))
RESUMED = replace(RUNNING, launch=2)
DEADLINE = 20.0


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end, "_SILENT_SECONDS", 0.02)
    monkeypatch.setattr(reader_module, "_POLL_SECONDS", 0.02)


async def put_rollout(queue: Queue, rollout: str, *, group_size: int = 1, records: int | None = None) -> None:
    for packet in (await scripted_rollout(rollout, group_size=group_size, turns=1))[:records]:
        await queue.put(packet.frames, key=packet.key, tag=packet.tag)


async def read_to_the_end(reader: TrajectoryReader) -> list[Group]:
    with anyio.fail_after(DEADLINE):
        return [group async for group in reader.groups()]


async def ends(reader: TrajectoryReader) -> bool:
    """Read for a while without a record, and return whether the reader has ended."""
    for _ in range(4):
        assert await reader.receive_group(timeout=0.05) is None
    return reader.ended


async def test_groups_end_when_the_launch_is_done_and_everything_is_consumed(queue: Queue) -> None:
    async with reader_of() as reader:
        await put_in_every_partition(queue, RUNNING)
        await put_rollout(queue, "0.0")
        await put_in_every_partition(queue, DONE)
        await put_rollout(queue, "1.0")  # of another lane, which became visible later
        assert [group.id for group in await read_to_the_end(reader)] == ["0", "1"]


async def test_trajectories_end_too(queue: Queue) -> None:
    async with reader_of() as reader:
        await put_rollout(queue, "0.0")
        await put_in_every_partition(queue, DONE)
        with anyio.fail_after(DEADLINE):
            assert [trajectory.rollout async for trajectory in reader] == ["0.0"]


async def test_receive_returns_at_once_at_the_end_instead_of_after_its_timeout(queue: Queue) -> None:
    async with reader_of() as reader:
        await put_in_every_partition(queue, DONE)
        with anyio.fail_after(DEADLINE):
            assert await reader.receive(timeout=3600) is None
        assert reader.ended


async def test_a_reader_does_not_end_while_the_launch_runs_or_was_killed(queue: Queue) -> None:
    async with reader_of() as reader:
        await put_in_every_partition(queue, RUNNING)
        assert not await ends(reader)


async def test_a_reader_does_not_end_before_any_launch(queue: Queue) -> None:
    async with reader_of() as reader:
        assert not await ends(reader)


async def test_a_resumed_launch_is_seen_and_waited_for(queue: Queue) -> None:
    async with reader_of() as reader:
        await put_in_every_partition(queue, RUNNING)
        await put_in_every_partition(queue, RESUMED)
        await put_in_every_partition(queue, DONE)  # of the first launch, delivered late
        assert not await ends(reader)
        await put_rollout(queue, "0.0")
        await put_in_every_partition(queue, replace(RESUMED, phase=LaunchPhase.DONE))
        assert [group.id for group in await read_to_the_end(reader)] == ["0"]


async def test_an_ended_reader_goes_on_if_a_launch_is_resumed(queue: Queue) -> None:
    async with reader_of() as reader:
        await put_in_every_partition(queue, STOPPED)
        assert await read_to_the_end(reader) == []
        await put_in_every_partition(queue, RESUMED)
        assert await reader.receive_group(timeout=0.05) is None
        assert not reader.ended


async def test_wait_for_more_waits_after_the_end(queue: Queue) -> None:
    async with reader_of(ReaderSettings(wait_for_more=True)) as reader:
        await put_in_every_partition(queue, DONE)
        assert not await ends(reader)


async def test_what_a_stopped_launch_left_incomplete_stays_in_the_queue(queue: Queue) -> None:
    async with reader_of() as reader:
        await put_rollout(queue, "0.0", group_size=2)
        await put_rollout(queue, "1.0", records=1)
        await put_rollout(queue, "2.0")
        await put_in_every_partition(queue, STOPPED)
        assert [group.id for group in await read_to_the_end(reader)] == ["2"]
        reader.state_dict()
        await reader.commit()
        assert await backlog(queue) == 3 + 1


async def test_incomplete_groups_are_given_up_when_every_rollout_has_ended(queue: Queue) -> None:
    settings = ReaderSettings(gap_timeout=0.1, groups=GroupPolicy(keep_partial=1))
    async with reader_of(settings) as reader:
        await put_rollout(queue, "0.0", group_size=2)
        await put_rollout(queue, "1.0", records=1)
        await put_in_every_partition(queue, DONE)
        ended_groups = {group.id: group.trajectories[0].status.value for group in await read_to_the_end(reader)}
        assert ended_groups == {"0": "ok", "1": "failed"}


async def test_what_is_missing_has_the_gap_timeout_to_arrive_after_the_end(queue: Queue) -> None:
    async with reader_of(ReaderSettings(gap_timeout=3600)) as reader:
        await put_rollout(queue, "0.0", group_size=2)
        await put_in_every_partition(queue, DONE)
        assert not await ends(reader)
        await put_rollout(queue, "0.1", group_size=2)
        assert [len(group.trajectories) for group in await read_to_the_end(reader)] == [2]


async def test_every_environment_on_the_queue_must_have_ended(queue: Queue) -> None:
    async with reader_of() as reader:
        await put_in_every_partition(queue, DONE)
        await put_in_every_partition(queue, replace(RUNNING, environment="Other"))
        assert not await ends(reader)
        await put_in_every_partition(queue, replace(DONE, environment="Other"))
        assert await ends(reader)


async def test_the_end_must_be_in_every_partition_that_the_reader_reads() -> None:
    url = "memory://partitioned-end?partitions=4"
    async with open_queue(url) as queue, open_reader(url, rank=1, world_size=2) as reader:
        await put_in_every_partition(queue, RUNNING)
        keys = {record.partition: record.key for record in await queue.peek(limit=10)}
        for partition in (0, 2, 1):
            assert not await ends(reader)
            await put_in_partition(queue, keys[partition], replace(DONE, partition=partition, partitions=4))
        assert not await ends(reader)
        await put_in_partition(queue, keys[3], replace(DONE, partition=3, partitions=4))
        assert await ends(reader)


async def put_in_partition(queue: Queue, key: str, status: LaunchStatus) -> None:
    await queue.put(encode_status(status), key=key, tag=status.tag)


async def test_the_saved_state_remembers_the_end(queue: Queue) -> None:
    async with reader_of() as reader:
        await put_in_every_partition(queue, DONE)
        assert await read_to_the_end(reader) == []
        state = reader.state_dict()
        await reader.commit()
    assert await backlog(queue) == 0
    async with reader_of() as reader:
        reader.load_state_dict(state)
        assert await read_to_the_end(reader) == []


async def test_a_state_from_before_the_end_does_not_contain_the_end(queue: Queue) -> None:
    async with reader_of() as reader:
        await put_in_every_partition(queue, DONE)
        await put_rollout(queue, "0.0")
        assert await reader.receive_group(timeout=DEADLINE) is not None
        state = reader.state_dict()
        await reader.commit()
    async with reader_of() as reader:
        reader.load_state_dict({**state, "watermarks": {}})
        assert not reader._consumed_rollouts.launches.all_ended(None)
        assert await read_to_the_end(reader) == []


async def test_a_restarted_reader_does_not_end_while_a_dead_one_holds_the_lease(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/queue?lease_time=1"
    async with open_queue(url) as launch, open_queue(url) as worker:
        await put_in_every_partition(launch, DONE)
        async with open_reader(url) as first:
            assert await first.receive_group(timeout=0) is None  # it has the end, and no rollout
            state = first.state_dict()
            await put_rollout(worker, "0.0")
            async with open_reader(url) as second:
                second.load_state_dict(state)
                assert not await ends(second)  # as long as the first one holds the lease
                await first.queue.release()
                assert [group.id for group in await read_to_the_end(second)] == ["0"]


async def test_a_run_that_was_given_up_is_not_waited_for(queue: Queue) -> None:
    async with reader_of(ReaderSettings(given_up_runs=frozenset({"killed"}))) as reader:
        await put_in_every_partition(queue, replace(RUNNING, run="killed"))
        assert not await ends(reader)
        await put_in_every_partition(queue, DONE)
        assert await ends(reader)


async def test_a_launch_on_another_machine_needs_more_silence_on_a_shared_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/queue"
    async with open_queue(url) as queue:
        await put_in_every_partition(queue, replace(DONE, host="elsewhere"))
    async with open_reader(url) as reader:
        assert not await ends(reader)
        monkeypatch.setattr(end, "_SHARED_DISK_SILENT_SECONDS", 0.02)
        assert await ends(reader)


async def test_the_time_in_which_the_trainer_trains_is_no_silence(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end, "_LONGEST_PAUSE_SECONDS", 0.0)
    async with reader_of() as reader:
        await put_in_every_partition(queue, DONE)
        assert not await ends(reader)


async def test_an_end_that_no_saved_state_contains_is_delivered_again(queue: Queue) -> None:
    for _ in range(2):
        async with reader_of() as reader:
            if not await backlog(queue):
                await put_in_every_partition(queue, DONE)
            assert await read_to_the_end(reader) == []


def test_merged_states_contain_the_newest_status_of_each_partition() -> None:
    first, second = ConsumedRollouts(), ConsumedRollouts()
    first.launches.add(replace(DONE, partition=0, partitions=2))
    first.launches.add(replace(RESUMED, partition=1, partitions=2))
    second.launches.add(replace(DONE, partition=1, partitions=2))
    for rank in (first, second):
        rank.launches.settle()
    merged = merge_states([first.state(), second.state()])
    assert [(status["partition"], status["launch"]) for status in merged["launches"]] == [(0, 1), (1, 2)]


def test_a_damaged_status_in_a_state_is_refused() -> None:
    state = ConsumedRollouts().state()
    with pytest.raises(ReaderStateError, match="damaged"):
        merge_states([{**state, "launches": [{"run": "run"}]}])


def test_a_state_of_an_older_version_knows_no_launches() -> None:
    state = ConsumedRollouts().state()
    del state["launches"]
    assert merge_states([state])["launches"] == []


async def test_a_reader_reports_once_what_a_killed_launch_left(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(end, "_REPORT_AFTER_SECONDS", 0.03)
    child = await anyio.run_process(["sh", "-c", "echo $$"])
    killed = replace(RUNNING, pid=int(child.stdout))
    async with reader_of() as reader:
        await put_in_every_partition(queue, killed)
        await put_rollout(queue, "7.0", records=1)
        await put_rollout(queue, "8.0", group_size=2)
        assert not await ends(reader)
    (text,) = [record.getMessage() for record in caplog.records if record.name == end.__name__]
    assert text.startswith(f"{QUEUE}: no record has arrived for 0 s. The launch of run run, environment Scripted, ")
    assert f"Its process {killed.pid} does not run any more: it was killed." in text
    assert "Continue it with `rollout launch --resume /data/run --workers N`" in text
    assert "Unfinished rollouts: 1, such as run/Scripted/7.0." in text
    assert "Finished rollouts that wait for the rest of their group: 1." in text


async def test_a_reader_reports_that_no_launch_writes_to_its_queue(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(end, "_REPORT_AFTER_SECONDS", 0.03)
    async with reader_of() as reader:
        assert not await ends(reader)
        assert "This reader knows of no launch that writes to this queue." in reader.describe_wait()
    assert "check that both programs use the same URL" in caplog.text


async def test_a_launch_on_another_machine_is_not_called_killed(queue: Queue) -> None:
    async with reader_of() as reader:
        await put_in_every_partition(queue, replace(RUNNING, host="elsewhere", pid=(1 << 31) - 1))
        assert not await ends(reader)
        assert "If it was killed, continue it with" in reader.describe_wait()


async def test_a_blocking_reader_ends_too(queue: Queue) -> None:
    await put_rollout(queue, "0.0")
    await put_in_every_partition(queue, DONE)

    def read() -> list[str]:
        with BlockingReader(QUEUE) as reader:
            return [group.id for group in reader.groups()]

    with anyio.fail_after(DEADLINE):
        assert await anyio.to_thread.run_sync(read) == ["0"]


async def test_an_end_without_any_rollout_is_reported(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    async with reader_of() as reader:
        await put_in_every_partition(queue, DONE)
        assert await read_to_the_end(reader) == []
    assert f"{QUEUE}: run/Scripted ended, and this reader has received no finished rollout." in caplog.text
