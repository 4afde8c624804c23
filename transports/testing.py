"""The contract of a queue as a pytest class, which anyone's transport can run:

    class TestCarrierPigeon(QueueConformance):
        @pytest.fixture
        def queue_url(self, tmp_path: Path) -> str:
            return f"pigeon://{tmp_path}"

`queue_url` is the URL, without a query, of a queue that does not exist yet. The cases add the options that every
transport understands: partitions, high_water, high_water_records and hard_limit. They need pytest and pytest-asyncio.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

import pytest

from transports.base import Delivery, Lease, Queue, QueueStats, partition_of
from transports.errors import (
    AdmissionTimeout,
    QueueClosed,
    QueueError,
    QueueFull,
    QueueURLError,
    RecordTooLarge,
    StaleLease,
)
from transports.registry import open_queue

SOON = 20.0
"""Seconds in which what must arrive has arrived; no case that passes waits as long."""
QUIET = 0.15
"""Seconds after which what has not arrived is taken not to come."""


class Opener(Protocol):
    """Opens handles on the queue under test; they are closed when the case ends."""

    def __call__(
        self, *, lease: Lease = "partition", consume: Sequence[int] | None = None, **options: object
    ) -> Queue: ...


class QueueConformance:
    """Subclass it, give it a `queue_url` fixture, and pytest runs every statement of the contract."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    async def opened(self, queue_url: str) -> AsyncIterator[Opener]:
        async with AsyncExitStack() as handles:

            def open_(*, lease: Lease = "partition", consume: Sequence[int] | None = None, **options: object) -> Queue:
                query = "&".join(f"{name}={value}" for name, value in options.items())
                joint = "&" if "?" in queue_url else "?"
                queue = open_queue(f"{queue_url}{joint}{query}" if query else queue_url, lease=lease, consume=consume)
                handles.push_async_callback(queue.aclose)
                return queue

            yield open_

    # What goes in comes out

    async def test_a_record_comes_out_as_it_went_in(self, opened: Opener) -> None:
        queue = opened()
        frames = (b"head", b"", memoryview(bytes(range(256)) * 300), memoryview(b"tail"))
        await queue.put(frames, key="group-7", tag="rollout ü / 3")
        delivery = await _next(queue)
        assert [bytes(frame) for frame in delivery.frames] == [bytes(frame) for frame in frames]
        assert (delivery.key, delivery.tag, delivery.redelivered) == ("group-7", "rollout ü / 3", False)

    async def test_a_buffer_may_be_reused_once_the_put_returned(self, opened: Opener) -> None:
        queue = opened()
        buffer = bytearray(b"before")
        await queue.put((memoryview(buffer),), key="k")
        buffer[:] = b"after!"
        assert bytes((await _next(queue)).frames[0]) == b"before"

    async def test_a_record_without_frames_is_refused(self, opened: Opener) -> None:
        with pytest.raises(QueueError, match="frame"):
            await opened().put((), key="k")

    async def test_records_of_a_key_arrive_in_the_order_of_their_puts(self, opened: Opener) -> None:
        queue = opened(partitions=3)
        for number in range(60):
            await _put(queue, number, key=f"key-{number % 7}")
        arrived = defaultdict(list)
        for _ in range(60):
            delivery = await _next(queue)
            arrived[delivery.key].append(_number(delivery))
            await delivery.ack()
        assert arrived == {f"key-{k}": list(range(k, 60, 7)) for k in range(7)}

    async def test_a_key_lives_in_one_partition_that_is_the_same_everywhere(self, opened: Opener) -> None:
        queue = opened(partitions=4)
        for number in range(24):
            await _put(queue, number, key=f"key-{number % 8}")
        for _ in range(24):
            delivery = await _next(queue)
            assert delivery.partition == partition_of(delivery.key, 4)

    async def test_positions_rise_within_a_lane(self, opened: Opener) -> None:
        queue = opened(partitions=2)
        for number in range(30):
            await _put(queue, number, key=str(number))
        last: dict[str, int] = {}
        for _ in range(30):
            delivery = await _next(queue)
            assert delivery.position > last.get(delivery.lane, -1)
            last[delivery.lane] = delivery.position

    # Waiting

    async def test_receive_returns_none_when_nothing_comes(self, opened: Opener) -> None:
        assert await opened().receive(timeout=0.02) is None

    async def test_a_waiting_consumer_gets_a_record_that_is_put_meanwhile(self, opened: Opener) -> None:
        consumer, producer = opened(), opened()
        waiting = asyncio.create_task(_next(consumer))
        await asyncio.sleep(0.02)
        await _put(producer, 5)
        assert _number(await waiting) == 5

    async def test_a_cancelled_receive_loses_nothing(self, opened: Opener) -> None:
        consumer, producer = opened(), opened()
        got = []
        for number in range(20):
            waiting = asyncio.create_task(consumer.receive(timeout=SOON))
            await asyncio.sleep(0)
            await _put(producer, number)
            waiting.cancel()
            outcome = (await asyncio.gather(waiting, return_exceptions=True))[0]
            if isinstance(outcome, Delivery):
                got.append(_number(outcome))
        while len(got) < 20:
            got.append(_number(await _next(consumer)))
        assert sorted(got) == list(range(20))

    # Acks, leases, redelivery

    async def test_an_acked_record_never_comes_again(self, opened: Opener) -> None:
        keeper, consumer = opened(), opened()
        for number in range(6):
            await _put(keeper, number)
        await consumer.ack([await _next(consumer) for _ in range(4)])
        await consumer.aclose()
        assert [_number(d) for d in await _rest(opened())] == [4, 5]

    async def test_a_second_ack_changes_nothing(self, opened: Opener) -> None:
        queue = opened()
        await _put(queue, 1)
        delivery = await _next(queue)
        await queue.ack([delivery, delivery])
        await delivery.ack()
        assert (await queue.stats()).backlog_records == 0

    async def test_what_a_closed_consumer_did_not_ack_comes_again_in_order(self, opened: Opener) -> None:
        keeper, first = opened(), opened()
        for number in range(5):
            await _put(keeper, number)
        before = [await _next(first) for _ in range(4)]
        await before[1].ack()
        await first.aclose()
        after = await _rest(opened())
        assert [(_number(d), d.redelivered) for d in after] == [(0, True), (2, True), (3, True), (4, False)]

    async def test_a_redelivered_record_keeps_its_lane_and_position(self, opened: Opener) -> None:
        keeper, first = opened(partitions=2), opened()
        for number in range(8):
            await _put(keeper, number, key=str(number))
        places = {_number(d): (d.partition, d.lane, d.position) for d in [await _next(first) for _ in range(8)]}
        await first.aclose()
        assert {_number(d): (d.partition, d.lane, d.position) for d in await _rest(opened())} == places

    async def test_a_partition_has_one_consumer_at_a_time(self, opened: Opener) -> None:
        producer, holder, other = opened(), opened(), opened()
        await _put(producer, 1)
        assert _number(await _next(holder)) == 1
        await _put(producer, 2)
        assert await other.receive(timeout=QUIET) is None
        await holder.aclose()
        assert [_number(await _next(other)), _number(await _next(other))] == [1, 2]

    async def test_consumers_of_different_partitions_do_not_disturb_each_other(self, opened: Opener) -> None:
        producer = opened(partitions=2)
        left, right = opened(consume=[0]), opened(consume=[1])
        for number in range(20):
            await _put(producer, number, key=str(number))
        got = {0: await _rest(left), 1: await _rest(right)}
        assert all(d.partition == partition for partition, deliveries in got.items() for d in deliveries)
        assert sorted(_number(d) for d in [*got[0], *got[1]]) == list(range(20))

    async def test_a_stale_holder_is_refused_and_the_new_one_has_every_record(self, opened: Opener) -> None:
        stale, new = opened(), opened()
        for number in range(3):
            await _put(stale, number)
        lent = [await _next(stale) for _ in range(3)]
        await lent[0].ack()
        await stale.release()
        again = [await _next(new) for _ in range(2)]
        with pytest.raises(StaleLease) as refused:
            await stale.ack(lent[1:])
        assert refused.value.deliveries == tuple(lent[1:])
        with pytest.raises(StaleLease):
            await lent[1].nack()
        with pytest.raises(StaleLease):
            await lent[2].reject("not mine any more")
        assert [_number(d) for d in again] == [1, 2]
        await new.ack(again)
        stats = await new.stats()
        assert (stats.backlog_records, stats.dead_letters) == (0, 0)

    async def test_acks_that_hold_are_kept_when_others_of_the_call_are_stale(self, opened: Opener) -> None:
        queue = opened()
        await _put(queue, 0)
        await _put(queue, 1)
        stale = [await _next(queue), await _next(queue)]
        await queue.release()
        fresh = await _next(queue)
        with pytest.raises(StaleLease):
            await queue.ack([*stale, fresh])
        assert [_number(d) for d in await _rest(queue)] == [1]

    async def test_a_record_given_back_comes_again_after_its_delay(self, opened: Opener) -> None:
        queue = opened()
        await _put(queue, 0)
        await _put(queue, 1)
        await (await _next(queue)).nack(delay=2 * QUIET)
        assert _number(await _next(queue)) == 1
        assert await queue.receive(timeout=QUIET) is None
        again = await _next(queue)
        assert (_number(again), again.redelivered) == (0, True)

    async def test_a_lapsed_lease_never_makes_a_dead_letter(self, opened: Opener) -> None:
        queue = opened()
        await _put(queue, 1)
        for _ in range(12):
            await _next(queue)
            await queue.release()
        stats = await queue.stats()
        assert (stats.dead_letters, stats.backlog_records, stats.redeliveries) == (0, 1, 11)

    async def test_a_rejected_record_is_a_dead_letter_with_its_reason(self, opened: Opener) -> None:
        queue = opened()
        await queue.put((b"not", b"msgpack"), key="k", tag="rollout-9")
        await _put(queue, 1)
        await (await _next(queue)).reject("cannot be decoded")
        await (await _next(queue)).ack()
        stats = await queue.stats()
        assert (stats.dead_letters, stats.backlog_records, stats.backlog_bytes) == (1, 0, 0)
        (dead,) = await queue.dead_letters()
        assert [bytes(frame) for frame in dead.frames] == [b"not", b"msgpack"]
        assert (dead.key, dead.tag, dead.reason) == ("k", "rollout-9", "cannot be decoded")
        await queue.release()
        assert await queue.receive(timeout=QUIET) is None

    # Single-record leases

    async def test_consumers_share_the_records_of_one_partition(self, opened: Opener) -> None:
        producer = opened()
        consumers = [opened(lease="record") for _ in range(3)]
        for number in range(30):
            await _put(producer, number)
        got = []
        for turn in range(30):
            got.append(await _next(consumers[turn % 3]))
            await got[-1].ack()
        assert sorted(map(_number, got)) == list(range(30))
        assert (await producer.stats()).backlog_records == 0

    async def test_a_record_lent_singly_comes_again_elsewhere_when_its_holder_closes(self, opened: Opener) -> None:
        producer, first, second = opened(), opened(lease="record"), opened(lease="record")
        await _put(producer, 0)
        await _put(producer, 1)
        assert {_number(await _next(first)), _number(await _next(second))} == {0, 1}
        assert await second.receive(timeout=QUIET) is None
        await first.aclose()
        again = await _next(second)
        assert again.redelivered
        await again.ack()
        assert (await producer.stats()).backlog_records == 1

    async def test_a_record_lent_singly_can_be_given_back_to_another(self, opened: Opener) -> None:
        first, second = opened(lease="record"), opened(lease="record")
        await _put(first, 0)
        lent = await _next(first)
        await lent.nack()
        again = await _next(second)
        assert (_number(again), again.redelivered, again.position) == (0, True, lent.position)

    # Limits

    async def test_new_work_is_admitted_up_to_the_high_water(self, opened: Opener) -> None:
        queue = opened(high_water=1000)
        await queue.admit(timeout=0)
        await queue.put((bytes(1000),), key="k")
        await queue.admit(timeout=0)

    async def test_admission_over_the_high_water_times_out_and_names_the_backlog(self, opened: Opener) -> None:
        queue = opened(high_water=1000)
        await queue.put((bytes(700),), key="k")
        await queue.put((bytes(301),), key="k")
        with pytest.raises(AdmissionTimeout, match=r"2 records of 1001 bytes"):
            await queue.admit(timeout=0.02)

    async def test_admission_counts_what_is_delivered_and_not_acked(self, opened: Opener) -> None:
        queue = opened(high_water_records=0)
        await _put(queue, 1)
        delivery = await _next(queue)
        waiting = asyncio.create_task(queue.admit(timeout=SOON))
        await asyncio.sleep(QUIET)
        assert not waiting.done()
        await delivery.ack()
        await waiting

    async def test_records_of_started_work_are_accepted_over_the_high_water(self, opened: Opener) -> None:
        queue = opened(high_water=100, hard_limit=10_000)
        for number in range(5):
            await queue.put((bytes(99), bytes([number])), key="k")
        assert (await queue.stats()).backlog_bytes == 500

    async def test_the_hard_limit_refuses_a_put_and_changes_nothing(self, opened: Opener) -> None:
        queue = opened(high_water=1000, hard_limit=1000)
        await queue.put((b"a" * 600,), key="k")
        with pytest.raises(QueueFull, match="1000"):
            await queue.put((b"b" * 600,), key="k")
        await queue.put((b"c" * 400,), key="k")
        assert [bytes(d.frames[0])[:1] for d in await _rest(queue)] == [b"a", b"c"]

    async def test_a_record_that_can_never_fit_is_refused_by_another_name(self, opened: Opener) -> None:
        with pytest.raises(RecordTooLarge, match="1001"):
            await opened(high_water=1000, hard_limit=1000).put((bytes(1001),), key="k")

    # Looking on

    async def test_stats_say_what_the_queue_holds(self, opened: Opener) -> None:
        queue, onlooker = opened(partitions=2), opened()
        assert await queue.stats() == QueueStats(0, 0, 0.0, 0, 0)
        await queue.put((bytes(10), bytes(5)), key="a")
        await queue.put((bytes(7),), key="b")
        delivery = await _next(queue)
        full = await onlooker.stats()
        assert (full.backlog_records, full.backlog_bytes, full.redeliveries) == (2, 22, 0)
        assert full.oldest_age > 0
        await delivery.ack()
        assert (await onlooker.stats()).backlog_records == 1

    # Handles and URLs

    async def test_the_number_of_partitions_is_fixed_when_the_queue_is_created(self, opened: Opener) -> None:
        await _put(opened(partitions=3), 1)
        assert _number(await _next(opened())) == 1
        with pytest.raises(QueueURLError, match="partitions=3"):
            await opened(partitions=2).stats()

    async def test_a_partition_that_is_not_there_cannot_be_consumed(self, opened: Opener) -> None:
        await _put(opened(partitions=2), 1)
        with pytest.raises(QueueURLError, match="2"):
            await opened(consume=[2]).receive(timeout=0)

    async def test_an_unknown_option_is_refused_with_the_nearest_name(self, opened: Opener) -> None:
        with pytest.raises(QueueURLError, match=r"'high_watr'.*'high_water'"):
            opened(high_watr=5)

    async def test_a_closed_handle_says_so(self, opened: Opener) -> None:
        queue = opened()
        await _put(queue, 1)
        delivery = await _next(queue)
        await queue.aclose()
        await queue.aclose()
        for call in (queue.stats(), queue.receive(timeout=0), _put(queue, 2), delivery.ack(), queue.admit()):
            with pytest.raises(QueueClosed):
                await call


async def _put(queue: Queue, number: int, *, key: str = "k") -> None:
    await queue.put((str(number).encode(),), key=key)


def _number(delivery: Delivery) -> int:
    return int(bytes(delivery.frames[0]))


async def _next(queue: Queue) -> Delivery:
    delivery = await queue.receive(timeout=SOON)
    assert delivery is not None, f"nothing came from {queue.url} within {SOON} s"
    return delivery


async def _rest(queue: Queue) -> list[Delivery]:
    """Everything that comes until nothing comes."""
    deliveries = []
    while (delivery := await queue.receive(timeout=QUIET)) is not None:
        deliveries.append(delivery)
    return deliveries
