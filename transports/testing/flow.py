"""Conformance tests of back-pressure: how producers wait for a slow consumer, or for one that needs whole groups."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from transports.base import Delivery, Queue
from transports.testing.cases import ARRIVAL_TIMEOUT, ConformanceCases, HandleOpener, receive_one

_WORKERS = 3
_RECORDS_PER_ROLLOUT = 4
_RECORD_BYTES = 250
_ROLLOUT_BYTES = _RECORDS_PER_ROLLOUT * _RECORD_BYTES


class BackpressureCases(ConformanceCases):
    """Tests that `admit` limits the backlog, and that producers and consumers do not wait for each other forever."""

    async def test_a_slow_consumer_bounds_the_backlog_by_the_high_water_and_what_started_work_adds(
        self, open_handle: HandleOpener
    ) -> None:
        high_water = 2 * _ROLLOUT_BYTES
        producer, consumer = open_handle(high_water=high_water), open_handle()
        backlogs: list[int] = []
        gate_closed = asyncio.Event()

        def record_backlog(backlog: int) -> None:
            backlogs.append(backlog)
            if backlog > high_water:
                gate_closed.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_run_workers(producer, [str(n) for n in range(24)], record_backlog))
            await gate_closed.wait()  # the consumer is slow: it starts only now
            for _ in range(24 * _RECORDS_PER_ROLLOUT):
                await (await receive_one(consumer)).ack()
        assert max(backlogs) <= high_water + _WORKERS * _ROLLOUT_BYTES

    async def test_a_consumer_that_waits_for_whole_groups_needs_room_for_little_over_two_batches(
        self, open_handle: HandleOpener
    ) -> None:
        rollouts_per_group, groups_per_batch, batches = 3, 2, 5
        batch_bytes = groups_per_batch * rollouts_per_group * _ROLLOUT_BYTES
        producer, consumer = open_handle(partitions=2, high_water=2 * batch_bytes + 1), open_handle(partitions=2)
        groups = [str(n) for n in range(batches * groups_per_batch)]
        finished: set[str] = set()
        waiting: dict[str, list[Delivery]] = defaultdict(list)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_run_workers(producer, [group for group in groups for _ in range(rollouts_per_group)]))
            for _ in range(batches):
                batch: list[str] = []
                while len(batch) < groups_per_batch:
                    delivery = await receive_one(consumer)
                    waiting[delivery.key].append(delivery)
                    if len(waiting[delivery.key]) == rollouts_per_group * _RECORDS_PER_ROLLOUT:
                        batch.append(delivery.key)
                await consumer.ack([delivery for group in batch for delivery in waiting.pop(group)])
                finished.update(batch)
        assert finished == set(groups)
        assert (await producer.stats()).backlog_records == 0


async def _run_workers(queue: Queue, groups: Sequence[str], on_backlog: Callable[[int], None] | None = None) -> None:
    """Simulate workers that play one rollout for each item of `groups`.

    Each rollout calls `admit` once, and then puts all its records.
    """
    groups_left = iter(groups)
    await asyncio.gather(*(_run_worker(queue, groups_left, on_backlog) for _ in range(_WORKERS)))


async def _run_worker(queue: Queue, groups: Iterable[str], on_backlog: Callable[[int], None] | None) -> None:
    for group in groups:
        await queue.admit(timeout=ARRIVAL_TIMEOUT)
        for _ in range(_RECORDS_PER_ROLLOUT):
            await queue.put((bytes(_RECORD_BYTES),), key=group)
            if on_backlog is not None:
                on_backlog((await queue.stats()).backlog_bytes)
