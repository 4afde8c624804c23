"""Flow of the conformance suite: what a slow consumer, or one that waits for whole groups, does to who puts."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from transports.base import Delivery, Queue
from transports.testing.cases import SOON, Cases, Opener, next_of

_WORKERS = 3
_STEPS = 4
_STEP_BYTES = 250
_ROLLOUT_BYTES = _STEPS * _STEP_BYTES


class FlowCases(Cases):
    """Admission under load."""

    async def test_a_slow_consumer_bounds_the_backlog_by_the_high_water_and_what_started_work_adds(
        self, opened: Opener
    ) -> None:
        high_water = 2 * _ROLLOUT_BYTES
        producer, consumer = opened(high_water=high_water), opened()
        seen: list[int] = []
        closed = asyncio.Event()

        def note(backlog: int) -> None:
            seen.append(backlog)
            if backlog > high_water:
                closed.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_work(producer, [str(n) for n in range(24)], note))
            await closed.wait()  # so slow is this consumer
            for _ in range(24 * _STEPS):
                await (await next_of(consumer)).ack()
        assert max(seen) <= high_water + _WORKERS * _ROLLOUT_BYTES

    async def test_a_consumer_that_waits_for_whole_groups_needs_room_for_little_over_two_batches(
        self, opened: Opener
    ) -> None:
        rollouts_per_group, groups_per_batch, batches = 3, 2, 5
        batch_bytes = groups_per_batch * rollouts_per_group * _ROLLOUT_BYTES
        producer, consumer = opened(partitions=2, high_water=2 * batch_bytes + 1), opened(partitions=2)
        groups = [str(n) for n in range(batches * groups_per_batch)]
        finished: set[str] = set()
        waiting: dict[str, list[Delivery]] = defaultdict(list)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_work(producer, [group for group in groups for _ in range(rollouts_per_group)]))
            for _ in range(batches):
                batch: list[str] = []
                while len(batch) < groups_per_batch:
                    delivery = await next_of(consumer)
                    waiting[delivery.key].append(delivery)
                    if len(waiting[delivery.key]) == rollouts_per_group * _STEPS:
                        batch.append(delivery.key)
                await consumer.ack([delivery for group in batch for delivery in waiting.pop(group)])
                finished.update(batch)
        assert finished == set(groups)
        assert (await producer.stats()).backlog_records == 0


async def _work(queue: Queue, groups: Sequence[str], note: Callable[[int], None] | None = None) -> None:
    """Some workers take the groups of rollouts in turn; each rollout is admitted, then puts its steps come what may."""
    tasks = iter(groups)
    await asyncio.gather(*(_play(queue, tasks, note) for _ in range(_WORKERS)))


async def _play(queue: Queue, tasks: Iterable[str], note: Callable[[int], None] | None) -> None:
    for group in tasks:
        await queue.admit(timeout=SOON)
        for _ in range(_STEPS):
            await queue.put((bytes(_STEP_BYTES),), key=group)
            if note is not None:
                note((await queue.stats()).backlog_bytes)
