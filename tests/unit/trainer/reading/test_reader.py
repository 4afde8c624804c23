"""The trainer's reader: whole trajectories, each exactly once relative to what the trainer saved."""

import asyncio
import itertools
import json
import random
from typing import Any

import pytest

from rollout.records.endings import RolloutStatus
from rollout.trainer import LeaseLost, ReaderSettings, ReaderStateError, TrajectoryReader, check, samples
from rollout.trainer.testing import checkpoint, put_all, read_all, scripted_rollout
from tests.unit.trainer.readers import QUEUE, SHORT_TIMEOUTS, backlog, reader_of
from transports import Queue, open_queue


async def test_a_trajectory_is_complete_and_valid(queue: Queue) -> None:
    await put_all(queue, await scripted_rollout())
    async with reader_of() as reader:
        (trajectory,) = await read_all(reader)
    assert check(trajectory) == []
    assert [node.message["content"] for node in trajectory.path(5)] == [
        text for turn in range(3) for text in (f"question {turn}", f"answer {turn}")
    ]
    (sample,) = samples(trajectory)
    assert sample.mask.sum() == 6
    assert sample.versions == ("7",)


@pytest.mark.parametrize("seed", range(10))
async def test_order_does_not_matter(queue: Queue, seed: int) -> None:
    packets = await scripted_rollout("a.0") + await scripted_rollout("b.0")
    random.Random(seed).shuffle(packets)
    await put_all(queue, packets)
    async with reader_of() as reader:
        found = await read_all(reader)
    assert sorted(trajectory.rollout for trajectory in found) == ["a.0", "b.0"]
    assert all(check(trajectory) == [] and trajectory.status is RolloutStatus.OK for trajectory in found)


async def test_rollouts_of_the_same_name_from_two_runs_or_environments_are_not_mixed_up(queue: Queue) -> None:
    runs = [
        await scripted_rollout(run="one"),
        await scripted_rollout(run="two"),
        await scripted_rollout(run="two", environment="Other"),
    ]
    await put_all(queue, [packet for together in zip(*runs, strict=True) for packet in together])
    async with reader_of() as reader:
        found = await read_all(reader)
    assert [trajectory.identity for trajectory in found] == [
        "one/Scripted/000000.0",
        "two/Scripted/000000.0",
        "two/Other/000000.0",
    ]
    assert all(check(trajectory) == [] for trajectory in found)


# Attempts


@pytest.mark.parametrize("winner", [1, 2])
async def test_the_first_finished_attempt_wins_and_the_other_is_dropped(queue: Queue, winner: int) -> None:
    attempts = {number: await scripted_rollout(attempt=number) for number in (1, 2)}
    other_attempt = attempts[3 - winner]
    await put_all(queue, [*other_attempt[:3], *attempts[winner], *other_attempt[3:]])
    async with reader_of() as reader:
        (trajectory,) = await read_all(reader)
        await checkpoint(reader)
        assert await backlog(queue) == 0
    assert trajectory.attempt == winner


@pytest.mark.parametrize("stalled_after", range(6), ids=lambda sent: f"{sent}_records")
@pytest.mark.parametrize("restarted", [False, True])
async def test_an_attempt_that_finishes_after_another_was_trained_is_dropped(
    queue: Queue, stalled_after: int, restarted: bool
) -> None:
    stalled = await scripted_rollout(attempt=1)
    await put_all(queue, stalled[:stalled_after] + await scripted_rollout(attempt=2))
    async with reader_of() as reader:
        assert [trajectory.attempt for trajectory in await read_all(reader)] == [1 if stalled_after == 5 else 2]
        state = await checkpoint(reader)
        if not restarted:
            await put_all(queue, stalled[stalled_after:])
            assert await read_all(reader) == []
            await checkpoint(reader)
    if restarted:
        await put_all(queue, stalled[stalled_after:])
        async with reader_of(SHORT_TIMEOUTS) as reader:
            reader.load_state_dict(state)
            assert await read_all(reader, timeout=0.2) == []
            await checkpoint(reader)
    assert await backlog(queue) == 0


# Checkpoints


async def test_nothing_is_acked_before_commit_and_commit_acks_what_the_state_contains(queue: Queue) -> None:
    await put_all(queue, await scripted_rollout("a.0"))
    async with reader_of() as reader:
        await read_all(reader)
        await reader.commit()
        assert await backlog(queue) == 5
        reader.state_dict()
        await put_all(queue, await scripted_rollout("b.0"))
        await read_all(reader)
        await reader.commit()
        assert await backlog(queue) == 5
        await checkpoint(reader)
        assert await backlog(queue) == 0


async def test_a_commit_of_an_earlier_state_acks_only_that_state(queue: Queue) -> None:
    await put_all(queue, await scripted_rollout("a.0") + await scripted_rollout("b.0"))
    async with reader_of() as reader:
        await reader.receive(timeout=1)
        first = reader.state_dict()
        await reader.receive(timeout=1)
        reader.state_dict()
        await reader.commit(first["number"])
        assert await backlog(queue) == 5
        await reader.commit()
        assert await backlog(queue) == 0


@pytest.mark.parametrize("saved", [False, True])
async def test_after_a_crash_only_trajectories_outside_the_checkpoint_are_read_again(queue: Queue, saved: bool) -> None:
    await put_all(queue, await scripted_rollout("a.0") + await scripted_rollout("b.0"))
    async with reader_of() as reader:
        before = reader.state_dict()
        await read_all(reader)
        after = reader.state_dict()
    # The trainer died before its commit: the queue still has all records, and the checkpoint decides.
    async with reader_of() as reader:
        reader.load_state_dict(json.loads(json.dumps(after if saved else before)))
        found = await read_all(reader)
        await checkpoint(reader)
        assert await backlog(queue) == 0
    assert len(found) == (0 if saved else 2)


@pytest.mark.parametrize("seed", range(20))
async def test_with_any_order_and_any_crash_each_trajectory_is_trained_once(queue: Queue, seed: int) -> None:
    draw = random.Random(seed)
    packets = [packet for name in "abcde" for packet in await scripted_rollout(f"{name}.0")]
    draw.shuffle(packets)
    await put_all(queue, packets)
    trained: list[str] = []
    state: dict[str, Any] | None = None
    while len(trained) < 5:
        async with reader_of() as reader:
            if state is not None:
                reader.load_state_dict(state)
            for _ in range(draw.randint(1, 3)):
                if (trajectory := await reader.receive(timeout=0.02)) is not None:
                    trained.append(trajectory.rollout)
            state = reader.state_dict()
            if draw.random() < 0.5:
                await reader.commit()
            await reader.receive(timeout=0.02)  # trained, but not saved before the crash
    assert sorted(trained) == ["a.0", "b.0", "c.0", "d.0", "e.0"]


async def test_the_state_does_not_grow_with_the_number_of_trained_rollouts(queue: Queue, monkeypatch: Any) -> None:
    monkeypatch.setattr("rollout.trainer.reading.consumed.REMEMBERED_NAMES", 8)
    sizes = []
    async with reader_of() as reader:
        for number in range(40):
            await put_all(queue, await scripted_rollout(f"{number:03d}.0", turns=1))
            await read_all(reader, timeout=0.0)
            await checkpoint(reader)
            sizes.append(len(json.dumps(reader.state_dict()["consumed"])))
    assert sizes[-1] == sizes[10]


@pytest.mark.parametrize(
    "state", [{}, {"version": 99}, {"version": 2}, {"version": 2, "watermarks": {}, "consumed": "?"}]
)
async def test_an_invalid_state_is_refused(state: dict[str, Any]) -> None:
    async with reader_of() as reader:
        with pytest.raises(ReaderStateError):
            reader.load_state_dict(state)


async def test_a_state_is_not_loaded_into_a_reader_that_has_read(queue: Queue) -> None:
    await put_all(queue, await scripted_rollout())
    async with reader_of() as reader:
        await read_all(reader)
        with pytest.raises(ReaderStateError):
            reader.load_state_dict(reader.state_dict())


# Leases


async def test_the_next_commit_after_a_lost_lease_is_an_error(queue: Queue) -> None:
    await put_all(queue, await scripted_rollout("a.0"))
    consumer = open_queue(QUEUE)
    async with TrajectoryReader(consumer) as stalled, reader_of() as successor:
        assert len(await read_all(stalled)) == 1
        await consumer.release()
        assert len(await read_all(successor)) == 1
        stalled.state_dict()
        with pytest.raises(LeaseLost, match="5 of the 5 records"):
            await stalled.commit()
        await checkpoint(successor)
        assert await backlog(queue) == 0


async def test_after_a_regained_lease_nothing_is_read_twice_and_the_next_commit_acks(queue: Queue) -> None:
    await put_all(queue, await scripted_rollout("a.0") + (await scripted_rollout("b.0"))[:2])
    consumer = open_queue(QUEUE)
    async with TrajectoryReader(consumer) as reader:
        assert [trajectory.rollout for trajectory in await read_all(reader)] == ["a.0"]
        reader.state_dict()
        await consumer.release()
        with pytest.raises(LeaseLost):
            await reader.commit()
        await put_all(queue, (await scripted_rollout("b.0"))[2:])
        assert [trajectory.rollout for trajectory in await read_all(reader)] == ["b.0"]
        await checkpoint(reader)
        assert await backlog(queue) == 0


# Time


async def test_a_read_ends_at_its_deadline_though_more_records_are_available(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_all(queue, (await scripted_rollout(turns=100))[:-1])
    clock = itertools.count(0, 0.001)
    monkeypatch.setattr("rollout.trainer.reading.reader.time.monotonic", lambda: next(clock))
    async with reader_of() as reader:
        assert await reader.receive(timeout=0.05) is None
        assert 5 < reader.stats().records < 60


async def test_a_read_with_a_timeout_of_zero_still_reads_available_records(queue: Queue) -> None:
    await put_all(queue, await scripted_rollout())
    async with reader_of() as reader:
        assert await read_all(reader, timeout=0.0)


async def test_other_tasks_run_while_records_are_read(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        await put_all(queue, await scripted_rollout(f"{number}.0", turns=1))
    monkeypatch.setattr("rollout.trainer.reading.reader._MAX_BLOCKING_SECONDS", 0.0)
    turns: list[int] = []

    async def take_turns() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    async with reader_of() as reader:
        other_task = asyncio.create_task(take_turns())
        for _ in range(20):
            assert await reader.receive(timeout=5) is not None
        other_task.cancel()
    assert len(turns) >= 20


async def test_many_stale_rollouts_do_not_delay_a_read_past_its_deadline(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them time out at the same moment."""
    for number in range(50):
        await put_all(queue, (await scripted_rollout(f"{number}.0", turns=1, version="1"))[:2])
    clock = itertools.count(0, 0.001)
    monkeypatch.setattr("rollout.trainer.reading.reader.time.monotonic", lambda: next(clock))
    async with reader_of(ReaderSettings(unfinished_timeout=0.0, max_staleness=1)) as reader:
        reader.version = 9
        while not reader.stats().stale:
            assert await reader.receive(timeout=0.0) is None
        assert reader.stats().stale < 50
