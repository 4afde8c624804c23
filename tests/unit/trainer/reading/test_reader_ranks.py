"""Several readers of one queue, and the reader without an event loop."""

from collections.abc import Iterator

import anyio
import pytest

from rollout.trainer import BlockingReader, RankError, merge_states, open_reader, partitions_of
from rollout.trainer.testing import put_all, read_all, scripted_rollout
from tests.unit.trainer.readers import read_groups
from transports import Queue, open_queue


async def test_two_ranks_share_the_groups_and_split_none() -> None:
    url = "memory://ranks?partitions=5"
    names = [f"{number:02d}" for number in range(20)]
    async with open_queue(url) as queue:
        for name in names:
            await put_all(
                queue,
                await scripted_rollout(f"{name}.0", group_size=2) + await scripted_rollout(f"{name}.1", group_size=2),
            )
        shares: list[set[str]] = []
        for rank in (0, 1):
            async with open_reader(url, rank=rank, world_size=2) as reader:
                groups = await read_groups(reader)
                assert all(group.whole for group in groups)
                shares.append({group.id for group in groups})
    assert shares[0]
    assert shares[1]
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == set(names)


async def test_states_of_all_ranks_can_be_merged_for_another_number_of_ranks() -> None:
    url = "memory://merge?partitions=4"
    async with open_queue(url) as queue:
        for number in range(12):
            await put_all(queue, await scripted_rollout(f"{number:02d}.0"))
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
def test_invalid_ranks_are_refused(rank: int, world_size: int) -> None:
    with pytest.raises(RankError):
        partitions_of("memory://x?partitions=2", rank, world_size)


# Without an event loop


@pytest.fixture
def delivered() -> Iterator[str]:
    """The URL of a queue with three rollouts; a handle without leases keeps it open."""
    url = "memory://blocking?partitions=2"

    async def fill(queue: Queue) -> None:
        for name in "abc":
            await put_all(queue, await scripted_rollout(f"{name}.0"))

    kept_open = open_queue(url)
    anyio.run(fill, kept_open)
    yield url
    anyio.run(kept_open.aclose)


def test_the_blocking_reader_works_like_the_reader(delivered: str) -> None:
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
