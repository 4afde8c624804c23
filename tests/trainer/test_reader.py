"""The trainer's reader: whole trajectories out of disordered, repeated, damaged and missing records, each once."""

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import anyio
import pytest

from rollout.steps import RecordError, RolloutFinished, RolloutStarted, RolloutStatus, decode_record, encode_record
from rollout.trainer import (
    BlockingReader,
    LeaseLost,
    RankError,
    ReaderSettings,
    ReaderStateError,
    Trajectory,
    TrajectoryReader,
    check,
    merge_states,
    open_reader,
    partitions_of,
    samples,
)
from transports import Frames, Queue, open_queue
from transports.codec import decode, encode

Packet = tuple[Frames, str, str]
Played = Callable[..., Awaitable[list[Packet]]]
QUEUE = "memory://reader-test"
HASTY = ReaderSettings(gap_timeout=0.05, unfinished_timeout=0.1)


@pytest.fixture
async def queue() -> AsyncIterator[Queue]:
    async with open_queue(QUEUE) as opened:
        yield opened


def reader_of(settings: ReaderSettings | None = None) -> TrajectoryReader:
    return TrajectoryReader(open_queue(QUEUE), settings)


async def deliver(queue: Queue, packets: Sequence[Packet]) -> None:
    for frames, key, tag in packets:
        await queue.put(frames, key=key, tag=tag)


async def read_all(reader: TrajectoryReader, timeout: float = 0.02) -> list[Trajectory]:
    found = []
    while (trajectory := await reader.receive(timeout=timeout)) is not None:
        found.append(trajectory)
    return found


async def backlog(queue: Queue) -> int:
    return (await queue.stats()).backlog_records


async def save_and_commit(reader: TrajectoryReader) -> dict[str, Any]:
    state = reader.state_dict()
    await reader.commit()
    return state


async def test_a_trajectory_comes_whole_and_sound(queue: Queue, played: Played) -> None:
    await deliver(queue, await played())
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
async def test_order_does_not_matter(queue: Queue, played: Played, seed: int) -> None:
    packets = await played("a.0") + await played("b.0")
    random.Random(seed).shuffle(packets)
    await deliver(queue, packets)
    async with reader_of() as reader:
        found = await read_all(reader)
    assert sorted(trajectory.rollout for trajectory in found) == ["a.0", "b.0"]
    assert all(check(trajectory) == [] and trajectory.status is RolloutStatus.OK for trajectory in found)


async def test_rollouts_of_the_same_name_from_two_runs_or_environments_are_not_mixed_up(
    queue: Queue, played: Played
) -> None:
    runs = [await played(run="one"), await played(run="two"), await played(run="two", environment="Other")]
    await deliver(queue, [packet for together in zip(*runs, strict=True) for packet in together])
    async with reader_of() as reader:
        found = await read_all(reader)
    assert [trajectory.identity for trajectory in found] == [
        "one/Env/000000.0",
        "two/Env/000000.0",
        "two/Other/000000.0",
    ]
    assert all(check(trajectory) == [] for trajectory in found)


# Attempts


@pytest.mark.parametrize("winner", [1, 2])
async def test_the_first_finished_attempt_wins_and_the_other_is_dropped(
    queue: Queue, played: Played, winner: int
) -> None:
    attempts = {number: await played(attempt=number) for number in (1, 2)}
    loser = attempts[3 - winner]
    await deliver(queue, [*loser[:3], *attempts[winner], *loser[3:]])
    async with reader_of() as reader:
        (trajectory,) = await read_all(reader)
        await save_and_commit(reader)
        assert await backlog(queue) == 0
    assert trajectory.attempt == winner


@pytest.mark.parametrize("stalled_after", range(6), ids=lambda sent: f"{sent}_records")
@pytest.mark.parametrize("restarted", [False, True])
async def test_an_attempt_that_stalled_and_finishes_after_the_other_was_trained_is_dropped(
    queue: Queue, played: Played, stalled_after: int, restarted: bool
) -> None:
    stalled = await played(attempt=1)
    await deliver(queue, stalled[:stalled_after] + await played(attempt=2))
    async with reader_of() as reader:
        assert [trajectory.attempt for trajectory in await read_all(reader)] == [1 if stalled_after == 5 else 2]
        state = await save_and_commit(reader)
        if not restarted:
            await deliver(queue, stalled[stalled_after:])
            assert await read_all(reader) == []
            await save_and_commit(reader)
    if restarted:
        await deliver(queue, stalled[stalled_after:])
        async with reader_of(HASTY) as reader:
            reader.load_state_dict(state)
            assert await read_all(reader, timeout=0.2) == []
            await save_and_commit(reader)
    assert await backlog(queue) == 0


# Checkpoints


async def test_nothing_is_acked_before_commit_and_commit_acks_what_the_state_contains(
    queue: Queue, played: Played
) -> None:
    await deliver(queue, await played("a.0"))
    async with reader_of() as reader:
        await read_all(reader)
        await reader.commit()
        assert await backlog(queue) == 5
        reader.state_dict()
        await deliver(queue, await played("b.0"))
        await read_all(reader)
        await reader.commit()
        assert await backlog(queue) == 5
        await save_and_commit(reader)
        assert await backlog(queue) == 0


async def test_a_commit_of_an_earlier_state_acks_no_more_than_that(queue: Queue, played: Played) -> None:
    await deliver(queue, await played("a.0") + await played("b.0"))
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
async def test_after_a_crash_a_trajectory_is_read_again_unless_the_checkpoint_has_it(
    queue: Queue, played: Played, saved: bool
) -> None:
    await deliver(queue, await played("a.0") + await played("b.0"))
    async with reader_of() as reader:
        before = reader.state_dict()
        await read_all(reader)
        after = reader.state_dict()
    # It died before it could commit: the queue has everything still, and the checkpoint decides.
    async with reader_of() as reader:
        reader.load_state_dict(json.loads(json.dumps(after if saved else before)))
        found = await read_all(reader)
        await save_and_commit(reader)
        assert await backlog(queue) == 0
    assert len(found) == (0 if saved else 2)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_the_order_and_the_moment_every_trajectory_is_in_the_state_or_comes_again(
    queue: Queue, played: Played, seed: int
) -> None:
    draw = random.Random(seed)
    packets = [packet for name in "abcde" for packet in await played(f"{name}.0")]
    draw.shuffle(packets)
    await deliver(queue, packets)
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
            await reader.receive(timeout=0.02)  # trained, and lost with the process
    assert sorted(trained) == ["a.0", "b.0", "c.0", "d.0", "e.0"]


async def test_the_state_does_not_grow_with_what_was_trained(queue: Queue, played: Played, monkeypatch: Any) -> None:
    monkeypatch.setattr("rollout.trainer.progress.REMEMBERED", 8)
    sizes = []
    async with reader_of() as reader:
        for number in range(40):
            await deliver(queue, await played(f"{number:03d}.0", turns=1))
            await read_all(reader, timeout=0.0)
            await save_and_commit(reader)
            sizes.append(len(json.dumps(reader.state_dict()["consumed"])))
    assert sizes[-1] == sizes[10]


@pytest.mark.parametrize(
    "state", [{}, {"version": 99}, {"version": 2}, {"version": 2, "watermarks": {}, "consumed": "?"}]
)
async def test_a_state_of_another_kind_is_refused(state: dict[str, Any]) -> None:
    async with reader_of() as reader:
        with pytest.raises(ReaderStateError):
            reader.load_state_dict(state)


async def test_a_state_is_not_loaded_into_a_reader_that_has_read(queue: Queue, played: Played) -> None:
    await deliver(queue, await played())
    async with reader_of() as reader:
        await read_all(reader)
        with pytest.raises(ReaderStateError):
            reader.load_state_dict(reader.state_dict())


# Leases


async def test_a_trainer_that_lost_its_lease_is_told_at_the_next_commit(queue: Queue, played: Played) -> None:
    await deliver(queue, await played("a.0"))
    consumer = open_queue(QUEUE)
    async with TrajectoryReader(consumer) as stalled, reader_of() as successor:
        assert len(await read_all(stalled)) == 1
        await consumer.release()
        assert len(await read_all(successor)) == 1
        stalled.state_dict()
        with pytest.raises(LeaseLost, match="5 of 5 records"):
            await stalled.commit()
        await save_and_commit(successor)
        assert await backlog(queue) == 0


async def test_a_lease_that_comes_back_brings_nothing_twice_and_the_next_commit_acks(
    queue: Queue, played: Played
) -> None:
    await deliver(queue, await played("a.0") + (await played("b.0"))[:2])
    consumer = open_queue(QUEUE)
    async with TrajectoryReader(consumer) as reader:
        assert [trajectory.rollout for trajectory in await read_all(reader)] == ["a.0"]
        reader.state_dict()
        await consumer.release()
        with pytest.raises(LeaseLost):
            await reader.commit()
        await deliver(queue, (await played("b.0"))[2:])
        assert [trajectory.rollout for trajectory in await read_all(reader)] == ["b.0"]
        await save_and_commit(reader)
        assert await backlog(queue) == 0


# Damage


async def test_a_step_that_never_comes_makes_the_rollout_fail_after_a_while(queue: Queue, played: Played) -> None:
    packets = await played()
    del packets[2]
    await deliver(queue, packets)
    async with reader_of(HASTY) as reader:
        trajectory = await reader.receive(timeout=5)
    assert trajectory is not None
    assert trajectory.status is RolloutStatus.FAILED
    assert trajectory.error == {"type": "LostRecords", "message": "2 of 3 steps came"}
    assert len(trajectory.steps) == 1


async def test_an_attempt_that_falls_silent_makes_the_rollout_fail_after_a_while(queue: Queue, played: Played) -> None:
    await deliver(queue, (await played())[:3])
    async with reader_of(HASTY) as reader:
        trajectory = await reader.receive(timeout=5)
        await save_and_commit(reader)
    assert trajectory is not None
    assert trajectory.error == {"type": "Unfinished", "message": "nothing came after 2 steps"}
    assert not samples(trajectory)
    assert await backlog(queue) == 0


async def test_a_gap_in_one_attempt_does_not_fail_a_rollout_while_another_attempt_goes_on(
    queue: Queue, played: Played
) -> None:
    first, second = await played(attempt=1), await played(attempt=2)
    await deliver(queue, [*first[:2], *first[3:], *second[:3]])
    async with reader_of(ReaderSettings(gap_timeout=0.01)) as reader:
        assert await read_all(reader, timeout=0.1) == []
        await deliver(queue, second[3:])
        (trajectory,) = await read_all(reader)
    assert trajectory.attempt == 2


@pytest.mark.parametrize("damaged", range(5))
@pytest.mark.parametrize("crashed", [False, True])
async def test_a_record_that_cannot_be_decoded_fails_its_rollout_and_the_group_completes(
    queue: Queue, played: Played, damaged: int, crashed: bool
) -> None:
    bad = await played("g.0", size=2)
    bad[damaged] = ((b"\xc1 not a record",), bad[damaged][1], bad[damaged][2])
    await deliver(queue, bad + await played("g.1", size=2))
    if crashed:
        async with reader_of() as reader:
            await read_all(reader)
    async with reader_of() as reader:
        group = await reader.receive_group(timeout=5)
        assert group is not None
        assert group.whole
        assert [trajectory.status.value for trajectory in group.trajectories] == ["failed", "ok"]
        assert (await queue.stats()).dead_letters == 0
        await save_and_commit(reader)
        assert (await queue.stats()).dead_letters == 1
        assert await backlog(queue) == 0


async def test_a_record_of_nobody_is_a_dead_letter_and_nothing_else(queue: Queue, played: Played) -> None:
    await queue.put((b"\xc1",), key="x", tag="of another program")
    await deliver(queue, await played())
    async with reader_of() as reader:
        assert len(await read_all(reader)) == 1
        await save_and_commit(reader)
        assert reader.stats().rejected == 1
    assert await backlog(queue) == 0


async def test_steps_that_were_changed_on_the_way_fail_their_rollout(queue: Queue, played: Played) -> None:
    packets, other = await played(), await played(turns=4)
    packets[2] = (other[3][0], packets[2][1], packets[2][2])
    await deliver(queue, packets)
    async with reader_of(HASTY) as reader:
        trajectory = await reader.receive(timeout=5)
    assert trajectory is not None
    assert trajectory.status is RolloutStatus.FAILED


async def test_a_newer_major_version_is_refused_and_unknown_fields_are_kept(played: Played) -> None:
    ((frames, _, _), *_) = await played()
    wire = decode(frames)
    kept = decode_record(encode({**wire, "schema": 101, "novelty": 3}))
    assert isinstance(kept, RolloutStarted)
    assert kept.extra == {"novelty": 3}
    with pytest.raises(RecordError, match=r"schema 2\.00"):
        decode_record(encode({**wire, "schema": 200}))


async def test_every_kind_of_record_survives_the_wire(played: Played) -> None:
    for frames, _, _ in await played():
        record = decode_record(frames)
        again = decode_record(encode_record(record))
        assert again.header == record.header
        assert type(again) is type(record)
    assert isinstance(again, RolloutFinished)
    assert again == record


# Memory


async def test_steps_beyond_the_memory_limit_lie_on_the_disk_and_come_back_unchanged(
    queue: Queue, played: Played
) -> None:
    rollouts = [await played(f"{number}.0", turns=8) for number in range(12)]
    await deliver(queue, [packet for together in zip(*rollouts, strict=True) for packet in together])
    async with reader_of(ReaderSettings(memory_limit=2000)) as reader:
        first = await reader.receive(timeout=5)
        assert first is not None
        stats = reader.stats()
        assert stats.bytes_in_memory <= 2000 < stats.bytes_on_disk
        found = [first, *await read_all(reader)]
        assert reader.stats().bytes_on_disk == reader.stats().bytes_in_memory == 0
    assert len(found) == 12
    assert all(check(trajectory) == [] and trajectory.trainable for trajectory in found)


# Ranks


async def test_two_ranks_share_the_groups_and_split_none(played: Played) -> None:
    url = "memory://ranks?partitions=5"
    names = [f"{number:02d}" for number in range(20)]
    async with open_queue(url) as queue:
        for name in names:
            await deliver(queue, await played(f"{name}.0", size=2) + await played(f"{name}.1", size=2))
        shares: list[set[str]] = []
        for rank in (0, 1):
            async with open_reader(url, rank=rank, world_size=2) as reader:
                share = set()
                while (group := await reader.receive_group(timeout=0.02)) is not None:
                    assert group.whole
                    share.add(group.id)
                shares.append(share)
    assert shares[0]
    assert shares[1]
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == set(names)


async def test_states_of_all_ranks_are_merged_for_another_number_of_ranks(played: Played) -> None:
    url = "memory://merge?partitions=4"
    async with open_queue(url) as queue:
        for number in range(12):
            await deliver(queue, await played(f"{number:02d}.0"))
        states, seen = [], []
        for rank in (0, 1):
            async with open_reader(url, rank=rank, world_size=2) as reader:
                seen += [t.rollout for t in [await reader.receive(timeout=1), await reader.receive(timeout=1)] if t]
                states.append(reader.state_dict())
        async with open_reader(url) as reader:
            reader.load_state_dict(merge_states(states))
            seen += [trajectory.rollout for trajectory in await read_all(reader)]
    assert sorted(seen) == [f"{number:02d}.0" for number in range(12)]


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 3)])
def test_ranks_that_cannot_be_are_refused(rank: int, world_size: int) -> None:
    with pytest.raises(RankError):
        partitions_of("memory://x?partitions=2", rank, world_size)


# Without an event loop


@pytest.fixture
def delivered(played: Played) -> Iterator[str]:
    """A queue that holds three rollouts, and is kept open by a reader that leases none of them."""
    url = "memory://blocking?partitions=2"

    async def fill(queue: Queue) -> None:
        for name in "abc":
            await deliver(queue, await played(f"{name}.0"))

    keeper = open_queue(url)
    anyio.run(fill, keeper)
    yield url
    anyio.run(keeper.aclose)


def test_the_blocking_reader_is_the_same_reader(delivered: str) -> None:
    with BlockingReader(delivered) as reader:
        first = next(iter(reader))
        state = reader.state_dict()
        reader.commit(state["number"])
    with BlockingReader(delivered) as reader:
        reader.load_state_dict(state)
        reader.version = 9
        groups = reader.groups()
        rest = [next(groups), next(groups)]
        assert reader.receive_group(timeout=0.02) is None
        assert reader.stats().staleness_max == 2
    assert sorted([first.group, *(group.id for group in rest)]) == ["a", "b", "c"]
