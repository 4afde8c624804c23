"""Conformance tests of handles: how they are opened and closed."""

from __future__ import annotations

import pytest

from transports.errors import QueueClosed, QueueURLError
from transports.testing.cases import ConformanceCases, HandleOpener, number_in, put_number, receive_one


class HandleCases(ConformanceCases):
    """Tests the options of URLs, and closed handles."""

    async def test_every_handle_knows_the_number_of_partitions(self, open_handle: HandleOpener) -> None:
        assert await open_handle(partitions=3).partition_count() == 3
        assert await open_handle().partition_count() == 3

    async def test_the_number_of_partitions_is_fixed_when_the_queue_is_created(self, open_handle: HandleOpener) -> None:
        await put_number(open_handle(partitions=3), 1)
        assert number_in(await receive_one(open_handle())) == 1
        with pytest.raises(QueueURLError, match="partitions=3"):
            await open_handle(partitions=2).stats()

    async def test_a_partition_that_is_not_there_cannot_be_consumed(self, open_handle: HandleOpener) -> None:
        await put_number(open_handle(partitions=2), 1)
        with pytest.raises(QueueURLError, match="2"):
            await open_handle(consume=[2]).receive(timeout=0)

    async def test_an_unknown_option_is_refused_with_the_nearest_name(self, open_handle: HandleOpener) -> None:
        with pytest.raises(QueueURLError, match=r"'high_watr'.*'high_water'"):
            open_handle(high_watr=5)

    async def test_a_closed_handle_says_so(self, open_handle: HandleOpener) -> None:
        queue = open_handle()
        await put_number(queue, 1)
        delivery = await receive_one(queue)
        await queue.aclose()
        await queue.aclose()
        for call in (
            queue.stats(),
            queue.receive(timeout=0),
            put_number(queue, 2),
            delivery.ack(),
            queue.admit(),
            queue.dead_letters(),
            queue.peek(limit=1),
            queue.requeue(limit=1),
        ):
            with pytest.raises(QueueClosed):
                await call
