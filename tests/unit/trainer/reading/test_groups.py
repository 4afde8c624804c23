"""Groups: whole ones at once, partial ones as the policy says, stale ones never."""

import time

import pytest

from rollout.trainer import GroupPolicy, ReaderSettings, TrajectoryReader, staleness
from rollout.trainer.testing import put_all, scripted_rollout
from tests.unit.trainer.readers import backlog, read_groups, reader_of
from transports import Queue


def grouper(policy: GroupPolicy | None = None, max_staleness: int | None = None) -> TrajectoryReader:
    return reader_of(ReaderSettings(groups=policy or GroupPolicy(), max_staleness=max_staleness))


async def test_a_group_comes_when_its_last_member_has_finished(queue: Queue) -> None:
    await put_all(queue, await scripted_rollout("a.1", group_size=2) + await scripted_rollout("b.0", group_size=2))
    async with grouper() as reader:
        assert await read_groups(reader) == []
        assert reader.stats().waiting == 2
        await put_all(queue, await scripted_rollout("a.0", group_size=2))
        (group,) = await read_groups(reader)
    assert group.whole
    assert [trajectory.rollout for trajectory in group.trajectories] == ["a.0", "a.1"]


async def test_members_that_wait_for_their_group_are_not_in_the_state(queue: Queue) -> None:
    await put_all(queue, await scripted_rollout("a.0", group_size=2))
    async with grouper() as reader:
        assert await read_groups(reader) == []
        state = reader.state_dict()
        await reader.commit()
    await put_all(queue, await scripted_rollout("a.1", group_size=2))
    async with grouper() as reader:
        reader.load_state_dict(state)
        (group,) = await read_groups(reader)
    assert group.whole


@pytest.mark.parametrize("keep", [None, 2, 3])
async def test_a_partial_group_is_returned_or_dropped_as_the_policy_says(queue: Queue, keep: int | None) -> None:
    """Two of three members come in time; the end of the third comes after the group timed out."""
    late_packets = await scripted_rollout("a.2", group_size=3)
    for rollout in ("a.0", "a.1"):
        await put_all(queue, await scripted_rollout(rollout, group_size=3))
    await put_all(queue, late_packets[:2])
    async with grouper(GroupPolicy(timeout=0.05, keep_partial=keep)) as reader:
        found = await read_groups(reader, timeout=0.2)
        await put_all(queue, late_packets[2:])
        assert await read_groups(reader) == []
        assert reader.stats().partial_groups == 1
        state = reader.state_dict()
        await reader.commit()
        assert await backlog(queue) == 0
    assert [len(group.trajectories) for group in found] == ([2] if keep == 2 else [])
    assert not any(group.whole for group in found)
    await put_all(queue, await scripted_rollout("a.2", attempt=2, group_size=3))
    async with grouper(GroupPolicy(timeout=0.05, keep_partial=1)) as reader:
        reader.load_state_dict(state)
        assert await read_groups(reader, timeout=0.1) == []


async def test_groups_of_the_same_name_from_two_environments_stay_apart(queue: Queue) -> None:
    for environment in ("One", "Other"):
        await put_all(queue, await scripted_rollout("a.0", environment=environment, group_size=2))
    async with grouper() as reader:
        assert await read_groups(reader) == []


async def test_records_that_a_busy_trainer_has_not_read_yet_do_not_time_out(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_all(queue, await scripted_rollout("a.0", group_size=2))
    async with grouper(GroupPolicy(timeout=0.5)) as reader:
        assert await read_groups(reader) == []
        await put_all(queue, await scripted_rollout("a.1", group_size=2))
        later = time.monotonic() + 1000
        monkeypatch.setattr("rollout.trainer.reading.reader.time.monotonic", lambda: later)
        group = await reader.receive_group(timeout=0.1)
    assert group is not None
    assert group.whole


async def test_a_group_with_a_stale_member_is_consumed_and_not_returned(queue: Queue) -> None:
    for rollout, version in (("a.0", "step-3"), ("a.1", "step-9"), ("b.0", "step-8"), ("b.1", "step-9")):
        await put_all(queue, await scripted_rollout(rollout, group_size=2, version=version))
    async with grouper(max_staleness=2) as reader:
        reader.version = 10
        (group,) = await read_groups(reader)
        stats = reader.stats()
        reader.state_dict()
        await reader.commit()
        assert await backlog(queue) == 0
    assert group.id == "b"
    assert (stats.stale, stats.staleness_mean, stats.staleness_max) == (2, 1.5, 2)
    assert [staleness(trajectory, 12) for trajectory in group.trajectories] == [4, 3]
