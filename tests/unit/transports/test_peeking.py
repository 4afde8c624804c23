"""Peeks, replays and dead letters: what the conformance suite cannot test for all transports."""

import logging
import os
from pathlib import Path

import pytest

from transports import DeadLetter, Queue, QueueCorrupt, QueueError, open_queue
from transports.memory import MemoryQueue
from transports.testing.cases import receive_one


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "queue"


def segments(root: Path, where: str = "p0") -> list[Path]:
    return sorted(root.glob(f"{where}/*.seg"))


async def put_numbers(queue: Queue, numbers: range) -> None:
    for number in numbers:
        await queue.put((str(number).encode(), bytes(100)), key="k")


async def peeked(queue: Queue) -> list[int]:
    return [int(bytes(record.frames[0])) for record in await queue.peek(limit=100)]


async def test_an_interrupted_requeue_duplicates_a_record_and_loses_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def die(queue: Queue, letter: DeadLetter) -> None:
        raise KeyboardInterrupt

    async with open_queue("memory://dies-in-between") as queue:
        await put_numbers(queue, range(1))
        await (await receive_one(queue)).reject("not today")
        monkeypatch.setattr(MemoryQueue, "discard", die)
        with pytest.raises(KeyboardInterrupt):
            await queue.requeue(limit=1)
        stats = await queue.stats()
        assert (stats.backlog_records, stats.dead_letters) == (1, 1)


async def test_a_segment_of_dead_letters_is_deleted_when_all_are_requeued(root: Path) -> None:
    async with open_queue(f"file://{root}") as queue:
        await put_numbers(queue, range(3))
        for _ in range(3):
            await (await receive_one(queue)).reject("not today")
    for left, limit in ((1, 2), (0, 1)):
        async with open_queue(f"file://{root}") as queue:
            assert await queue.requeue(limit=limit) == limit
        assert len(segments(root, "p0/dead")) == left
    async with open_queue(f"file://{root}") as queue:
        stats = await queue.stats()
        assert (stats.backlog_records, stats.dead_letters) == (3, 0)


async def test_retained_records_are_counted_and_only_a_replay_shows_them(root: Path) -> None:
    async with open_queue(f"file://{root}?retain=true&segment_bytes=200") as queue:
        await put_numbers(queue, range(6))
        leased = [await receive_one(queue) for _ in range(5)]
        await queue.ack([*leased[:3], leased[4]])
        assert await peeked(queue) == [3, 5]
        stats = await queue.stats()
        assert (stats.backlog_records, stats.retained_records) == (2, 4)
        async with open_queue(f"file://{root}?replay=true") as replayed:
            found = await replayed.peek(limit=100)
            assert [int(bytes(record.frames[0])) for record in found] == list(range(6))
            assert [record.acked for record in found] == [True, True, True, False, True, False]
            stats = await replayed.stats()
            assert (stats.backlog_records, stats.retained_records) == (2, 4)


async def test_a_reopened_queue_counts_its_retained_records(root: Path) -> None:
    async with open_queue(f"file://{root}?retain=true") as queue:
        await put_numbers(queue, range(3))
    async with open_queue(f"file://{root}") as queue:
        await queue.ack([await receive_one(queue) for _ in range(3)])
        assert await queue.receive(timeout=0.05) is None
    async with open_queue(f"file://{root}") as queue:
        stats = await queue.stats()
        assert (stats.backlog_records, stats.retained_records) == (0, 3)


async def test_a_queue_without_retain_has_no_retained_records(root: Path) -> None:
    async with open_queue(f"file://{root}") as queue:
        await put_numbers(queue, range(3))
        await queue.ack([await receive_one(queue)])
        assert (await queue.stats()).retained_records == 0


async def test_peek_skips_a_record_that_is_being_written_without_a_warning(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_queue(f"file://{root}") as queue:
        await put_numbers(queue, range(2))
        (segment,) = segments(root)
        os.truncate(segment, segment.stat().st_size - 8)
        with caplog.at_level(logging.WARNING):
            assert await peeked(queue) == [0]
    assert not caplog.records


async def test_peek_names_a_damaged_segment(root: Path) -> None:
    async with open_queue(f"file://{root}?segment_bytes=1") as queue:
        await put_numbers(queue, range(3))
    damaged = segments(root)[1]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    async with open_queue(f"file://{root}") as queue:
        with pytest.raises(QueueCorrupt, match=damaged.name):
            await queue.peek(limit=10)


async def test_a_replay_can_be_read_and_not_changed(root: Path) -> None:
    async with open_queue(f"file://{root}") as queue:
        await put_numbers(queue, range(3))
        await (await receive_one(queue)).reject("not today")
    async with open_queue(f"file://{root}?replay=true") as replayed:
        assert await peeked(replayed) == [0, 1, 2]
        with pytest.raises(QueueError, match="read-only"):
            await replayed.requeue(limit=1)
        (letter,) = await replayed.dead_letters()
        with pytest.raises(QueueError, match="read-only"):
            await replayed.discard(letter)
