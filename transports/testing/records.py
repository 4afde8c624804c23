"""Conformance tests of records: a waiting consumer receives them unchanged and in order."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest

from transports.base import Delivery, partition_of
from transports.errors import QueueError
from transports.testing.cases import ARRIVAL_TIMEOUT, ConformanceCases, HandleOpener, number_in, put_number, receive_one

_LARGE_BYTES = 5 << 20
"""The size in bytes of a record that is too large to be written on the event loop."""


class RecordCases(ConformanceCases):
    """Tests that records are received unchanged, in order, and without loss."""

    async def test_a_record_comes_out_as_it_went_in(self, open_handle: HandleOpener) -> None:
        queue = open_handle()
        frames = (b"head", b"", memoryview(bytes(range(256)) * 300), memoryview(b"tail"))
        await queue.put(frames, key="group-7", tag="rollout ü / 3")
        delivery = await receive_one(queue)
        assert [bytes(frame) for frame in delivery.frames] == [bytes(frame) for frame in frames]
        assert (delivery.key, delivery.tag, delivery.redelivered) == ("group-7", "rollout ü / 3", False)

    async def test_a_buffer_may_be_reused_once_the_put_returned(self, open_handle: HandleOpener) -> None:
        queue = open_handle()
        buffer = bytearray(b"before")
        await queue.put((memoryview(buffer),), key="k")
        buffer[:] = b"after!"
        assert bytes((await receive_one(queue)).frames[0]) == b"before"

    async def test_a_record_without_frames_is_refused(self, open_handle: HandleOpener) -> None:
        with pytest.raises(QueueError, match="frame"):
            await open_handle().put((), key="k")

    async def test_records_of_a_key_arrive_in_the_order_of_their_puts(self, open_handle: HandleOpener) -> None:
        queue = open_handle(partitions=3)
        for number in range(60):
            await put_number(queue, number, key=f"key-{number % 7}")
        numbers_by_key = defaultdict(list)
        for _ in range(60):
            delivery = await receive_one(queue)
            numbers_by_key[delivery.key].append(number_in(delivery))
            await delivery.ack()
        assert numbers_by_key == {f"key-{k}": list(range(k, 60, 7)) for k in range(7)}

    async def test_a_key_lives_in_one_partition_that_is_the_same_everywhere(self, open_handle: HandleOpener) -> None:
        queue = open_handle(partitions=4)
        for number in range(24):
            await put_number(queue, number, key=f"key-{number % 8}")
        for _ in range(24):
            delivery = await receive_one(queue)
            assert delivery.partition == partition_of(delivery.key, 4)

    async def test_positions_rise_within_a_lane(self, open_handle: HandleOpener) -> None:
        queue = open_handle(partitions=2)
        for number in range(30):
            await put_number(queue, number, key=str(number))
        last_positions: dict[str, int] = {}
        for _ in range(30):
            delivery = await receive_one(queue)
            assert delivery.position > last_positions.get(delivery.lane, -1)
            last_positions[delivery.lane] = delivery.position

    async def test_large_and_small_records_that_are_put_together_keep_their_order(
        self, open_handle: HandleOpener
    ) -> None:
        consumer, producer = open_handle(), open_handle()
        assert await consumer.receive(timeout=0) is None
        async with asyncio.TaskGroup() as puts:
            for number in range(6):
                frames = (str(number).encode(), bytes(_LARGE_BYTES if number % 3 == 1 else 0))
                puts.create_task(producer.put(frames, key="k"))
        assert [number_in(await receive_one(consumer)) for _ in range(6)] == list(range(6))

    async def test_a_cancelled_put_harms_no_later_one(self, open_handle: HandleOpener) -> None:
        consumer, producer = open_handle(), open_handle()
        assert await consumer.receive(timeout=0) is None
        for number in range(10):
            putting = asyncio.create_task(put_number(producer, number))
            for _ in range(number):
                await asyncio.sleep(0)
            putting.cancel()
            await asyncio.wait([putting])
        await put_number(producer, 10)
        numbers = [number_in(await receive_one(consumer))]
        while numbers[-1] != 10:
            numbers.append(number_in(await receive_one(consumer)))
        assert numbers == sorted(set(numbers))

    # Waiting

    async def test_receive_returns_none_when_nothing_comes(self, open_handle: HandleOpener) -> None:
        assert await open_handle().receive(timeout=0.02) is None

    async def test_a_waiting_consumer_gets_a_record_that_is_put_meanwhile(self, open_handle: HandleOpener) -> None:
        consumer, producer = open_handle(), open_handle()
        waiting = asyncio.create_task(receive_one(consumer))
        await asyncio.sleep(0.02)
        await put_number(producer, 5)
        assert number_in(await waiting) == 5

    async def test_a_cancelled_receive_loses_nothing(self, open_handle: HandleOpener) -> None:
        consumer, producer = open_handle(), open_handle()
        received = []
        for number in range(20):
            waiting = asyncio.create_task(consumer.receive(timeout=ARRIVAL_TIMEOUT))
            await asyncio.sleep(0)
            await put_number(producer, number)
            waiting.cancel()
            outcome = (await asyncio.gather(waiting, return_exceptions=True))[0]
            if isinstance(outcome, Delivery):
                received.append(number_in(outcome))
        while len(received) < 20:
            received.append(number_in(await receive_one(consumer)))
        assert sorted(received) == list(range(20))
