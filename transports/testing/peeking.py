"""Onlookers of the conformance suite: what a queue tells of what it holds, and what becomes of dead letters."""

from __future__ import annotations

import asyncio

import pytest

from transports.base import QueueStats, partition_of
from transports.errors import QueueFull
from transports.testing.cases import QUIET, Cases, Opener, next_of, put_number


class OnlookerCases(Cases):
    """Statistics, peeking and dead letters."""

    async def test_stats_say_what_the_queue_holds(self, opened: Opener) -> None:
        queue, onlooker = opened(partitions=2), opened()
        assert await queue.stats() == QueueStats(0, 0, 0.0, 0, 0)
        await queue.put((bytes(10), bytes(5)), key="a")
        await queue.put((bytes(7),), key="b")
        delivery = await next_of(queue)
        full = await onlooker.stats()
        assert (full.backlog_records, full.backlog_bytes, full.redeliveries) == (2, 22, 0)
        assert full.oldest_age > 0
        await delivery.ack()
        assert (await onlooker.stats()).backlog_records == 1

    async def test_peeking_shows_the_backlog_oldest_first_as_it_was_put(self, opened: Opener) -> None:
        queue, onlooker = opened(partitions=3), opened()
        assert list(await queue.peek(limit=5)) == []
        for number in range(12):
            await queue.put((str(number).encode(), b"", bytes(9)), key=f"key-{number}", tag=f"record ü {number}")
            await asyncio.sleep(0.002)  # clocks of a millisecond tell them apart
        seen = await onlooker.peek(limit=10)
        assert [[bytes(frame) for frame in record.frames] for record in seen] == [
            [str(number).encode(), b"", bytes(9)] for number in range(10)
        ]
        assert [(record.key, record.tag) for record in seen] == [(f"key-{n}", f"record ü {n}") for n in range(10)]
        assert {record.partition for record in seen} == {partition_of(record.key, 3) for record in seen}
        places = {record.key: (record.partition, record.position) for record in seen}
        received = [await next_of(queue) for _ in range(12)]
        assert places.items() <= {d.key: (d.partition, d.position) for d in received}.items()

    async def test_peeking_leases_and_consumes_nothing(self, opened: Opener) -> None:
        queue = opened()
        await put_number(queue, 1)
        before = await queue.stats()
        await queue.peek(limit=10)
        after = await queue.stats()
        assert (after.backlog_records, after.redeliveries) == (before.backlog_records, before.redeliveries)
        delivery = await next_of(opened())
        assert not delivery.redelivered
        await queue.peek(limit=10)
        await delivery.ack()
        assert list(await queue.peek(limit=10)) == []

    async def test_peeking_tells_what_was_delivered_before(self, opened: Opener) -> None:
        queue, first, second = opened(), opened(), opened()
        for number in range(3):
            await put_number(queue, number)
        assert [record.delivered for record in await queue.peek(limit=3)] == [False, False, False]
        for _ in range(2):
            await next_of(first)
        assert [record.delivered for record in await queue.peek(limit=2)] == [True, True]
        await first.release()
        assert [record.delivered for record in await queue.peek(limit=3)] == [True, True, False]
        await next_of(second)
        assert [record.delivered for record in await queue.peek(limit=2)] == [True, True]

    async def test_peeking_tells_what_was_lent_singly(self, opened: Opener) -> None:
        queue = opened(lease="record")
        await put_number(queue, 0)
        await put_number(queue, 1)
        await next_of(queue)
        assert [record.delivered for record in await queue.peek(limit=2)] == [True, False]

    async def test_requeued_dead_letters_are_new_records(self, opened: Opener) -> None:
        queue = opened(partitions=2)
        for number in range(3):
            await queue.put((str(number).encode(), b"rest"), key=f"key-{number}", tag=f"tag {number}")
        places = set()
        for _ in range(3):
            delivery = await next_of(queue)
            places.add((delivery.lane, delivery.position))
            await delivery.reject("not today")
        assert await queue.requeue(limit=10) == 3
        stats = await queue.stats()
        assert (stats.backlog_records, stats.dead_letters) == (3, 0)
        assert list(await queue.dead_letters()) == []
        again = [await next_of(queue) for _ in range(3)]
        assert sorted((d.key, d.tag, bytes(d.frames[0]), bytes(d.frames[1]), d.redelivered) for d in again) == [
            (f"key-{number}", f"tag {number}", str(number).encode(), b"rest", False) for number in range(3)
        ]
        assert places.isdisjoint((d.lane, d.position) for d in again)
        await queue.ack(again)
        await queue.release()
        assert await queue.receive(timeout=QUIET) is None

    async def test_requeueing_takes_the_first_dead_letters_and_any_handle_may(self, opened: Opener) -> None:
        consumer, other = opened(), opened()
        for number in range(4):
            await put_number(consumer, number)
        for _ in range(4):
            await (await next_of(consumer)).reject("not today")
        assert await other.requeue(limit=3) == 3
        assert [bytes(letter.frames[0]) for letter in await consumer.dead_letters()] == [b"3"]
        assert (await consumer.stats()).dead_letters == 1
        await (await next_of(consumer)).reject("nor now")
        assert sorted(bytes(letter.frames[0]) for letter in await other.dead_letters()) == [b"0", b"3"]

    async def test_what_cannot_be_requeued_stays_a_dead_letter(self, opened: Opener) -> None:
        queue = opened(high_water=1000, hard_limit=1000)
        for filling in (b"a", b"b"):
            await queue.put((filling * 600,), key="k")
            await (await next_of(queue)).reject("not today")
        with pytest.raises(QueueFull, match="1000"):
            await queue.requeue(limit=2)
        stats = await queue.stats()
        assert (stats.backlog_records, stats.dead_letters) == (1, 1)
        assert [bytes(letter.frames[0])[:1] for letter in await queue.dead_letters()] == [b"b"]

    async def test_a_discarded_dead_letter_is_gone_for_good(self, opened: Opener) -> None:
        queue = opened()
        for number in range(2):
            await put_number(queue, number)
            await (await next_of(queue)).reject("not today")
        first, second = await queue.dead_letters()
        await queue.discard(first)
        await queue.discard(first)
        assert [letter.id for letter in await queue.dead_letters()] == [second.id]
