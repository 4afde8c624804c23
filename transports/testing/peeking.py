"""Conformance tests of stats, of peeking, and of dead letters."""

from __future__ import annotations

import asyncio

import pytest

from transports.base import QueueStats, partition_of
from transports.errors import QueueFull
from transports.testing.cases import QUIET_SECONDS, ConformanceCases, HandleOpener, put_number, receive_one


class PeekCases(ConformanceCases):
    """Tests stats, peeking and dead letters."""

    async def test_stats_say_what_the_queue_holds(self, open_handle: HandleOpener) -> None:
        queue, peeking_handle = open_handle(partitions=2), open_handle()
        assert await queue.stats() == QueueStats(0, 0, 0.0, 0, 0)
        await queue.put((bytes(10), bytes(5)), key="a")
        await queue.put((bytes(7),), key="b")
        delivery = await receive_one(queue)
        stats = await peeking_handle.stats()
        assert (stats.backlog_records, stats.backlog_bytes, stats.redeliveries) == (2, 22, 0)
        assert stats.oldest_age > 0
        await delivery.ack()
        assert (await peeking_handle.stats()).backlog_records == 1

    async def test_peeking_shows_the_backlog_oldest_first_as_it_was_put(self, open_handle: HandleOpener) -> None:
        queue, peeking_handle = open_handle(partitions=3), open_handle()
        assert list(await queue.peek(limit=5)) == []
        for number in range(12):
            await queue.put((str(number).encode(), b"", bytes(9)), key=f"key-{number}", tag=f"record ü {number}")
            await asyncio.sleep(0.002)  # so that records get different times from a clock with milliseconds
        peeked = await peeking_handle.peek(limit=10)
        assert [[bytes(frame) for frame in record.frames] for record in peeked] == [
            [str(number).encode(), b"", bytes(9)] for number in range(10)
        ]
        assert [(record.key, record.tag) for record in peeked] == [(f"key-{n}", f"record ü {n}") for n in range(10)]
        assert {record.partition for record in peeked} == {partition_of(record.key, 3) for record in peeked}
        positions = {record.key: (record.partition, record.position) for record in peeked}
        received = [await receive_one(queue) for _ in range(12)]
        assert positions.items() <= {d.key: (d.partition, d.position) for d in received}.items()

    async def test_peeking_leases_and_consumes_nothing(self, open_handle: HandleOpener) -> None:
        queue = open_handle()
        await put_number(queue, 1)
        before = await queue.stats()
        await queue.peek(limit=10)
        after = await queue.stats()
        assert (after.backlog_records, after.redeliveries) == (before.backlog_records, before.redeliveries)
        delivery = await receive_one(open_handle())
        assert not delivery.redelivered
        await queue.peek(limit=10)
        await delivery.ack()
        assert list(await queue.peek(limit=10)) == []

    async def test_peeking_tells_what_was_delivered_before(self, open_handle: HandleOpener) -> None:
        queue, first, second = open_handle(), open_handle(), open_handle()
        for number in range(3):
            await put_number(queue, number)
        assert [record.delivered for record in await queue.peek(limit=3)] == [False, False, False]
        for _ in range(2):
            await receive_one(first)
        assert [record.delivered for record in await queue.peek(limit=2)] == [True, True]
        await first.release()
        assert [record.delivered for record in await queue.peek(limit=3)] == [True, True, False]
        await receive_one(second)
        assert [record.delivered for record in await queue.peek(limit=2)] == [True, True]

    async def test_peeking_tells_which_single_record_was_delivered(self, open_handle: HandleOpener) -> None:
        queue = open_handle(lease="record")
        await put_number(queue, 0)
        await put_number(queue, 1)
        await receive_one(queue)
        assert [record.delivered for record in await queue.peek(limit=2)] == [True, False]

    async def test_requeued_dead_letters_are_new_records(self, open_handle: HandleOpener) -> None:
        queue = open_handle(partitions=2)
        for number in range(3):
            await queue.put((str(number).encode(), b"rest"), key=f"key-{number}", tag=f"tag {number}")
        positions = set()
        for _ in range(3):
            delivery = await receive_one(queue)
            positions.add((delivery.lane, delivery.position))
            await delivery.reject("not today")
        assert await queue.requeue(limit=10) == 3
        stats = await queue.stats()
        assert (stats.backlog_records, stats.dead_letters) == (3, 0)
        assert list(await queue.dead_letters()) == []
        requeued = [await receive_one(queue) for _ in range(3)]
        assert sorted((d.key, d.tag, bytes(d.frames[0]), bytes(d.frames[1]), d.redelivered) for d in requeued) == [
            (f"key-{number}", f"tag {number}", str(number).encode(), b"rest", False) for number in range(3)
        ]
        assert positions.isdisjoint((d.lane, d.position) for d in requeued)
        await queue.ack(requeued)
        await queue.release()
        assert await queue.receive(timeout=QUIET_SECONDS) is None

    async def test_requeueing_takes_the_first_dead_letters_and_any_handle_may(self, open_handle: HandleOpener) -> None:
        consumer, other = open_handle(), open_handle()
        for number in range(4):
            await put_number(consumer, number)
        for _ in range(4):
            await (await receive_one(consumer)).reject("not today")
        assert await other.requeue(limit=3) == 3
        assert [bytes(letter.frames[0]) for letter in await consumer.dead_letters()] == [b"3"]
        assert (await consumer.stats()).dead_letters == 1
        await (await receive_one(consumer)).reject("nor now")
        assert sorted(bytes(letter.frames[0]) for letter in await other.dead_letters()) == [b"0", b"3"]

    async def test_what_cannot_be_requeued_stays_a_dead_letter(self, open_handle: HandleOpener) -> None:
        queue = open_handle(high_water=1000, hard_limit=1000)
        for filling in (b"a", b"b"):
            await queue.put((filling * 600,), key="k")
            await (await receive_one(queue)).reject("not today")
        with pytest.raises(QueueFull, match="1000"):
            await queue.requeue(limit=2)
        stats = await queue.stats()
        assert (stats.backlog_records, stats.dead_letters) == (1, 1)
        assert [bytes(letter.frames[0])[:1] for letter in await queue.dead_letters()] == [b"b"]

    async def test_a_discarded_dead_letter_is_gone_for_good(self, open_handle: HandleOpener) -> None:
        queue = open_handle()
        for number in range(2):
            await put_number(queue, number)
            await (await receive_one(queue)).reject("not today")
        first, second = await queue.dead_letters()
        await queue.discard(first)
        await queue.discard(first)
        assert [letter.id for letter in await queue.dead_letters()] == [second.id]
