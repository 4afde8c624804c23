"""Onlookers of the conformance suite: what a queue tells of what it holds, and what becomes of dead letters."""

from __future__ import annotations

from transports.base import QueueStats
from transports.testing.opened import Cases, Opener, next_of


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
