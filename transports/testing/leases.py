"""Conformance tests of leases: which consumer has a record, which consumer gets it next, and which ack is accepted."""

from __future__ import annotations

import pytest

from transports.base import StaleLease
from transports.testing.cases import (
    QUIET_SECONDS,
    ConformanceCases,
    HandleOpener,
    number_in,
    put_number,
    receive_all,
    receive_one,
)


class LeaseCases(ConformanceCases):
    """Tests leases on partitions and on single records, acks, and redelivery."""

    async def test_an_acked_record_never_comes_again(self, open_handle: HandleOpener) -> None:
        producer, consumer = open_handle(), open_handle()
        for number in range(6):
            await put_number(producer, number)
        await consumer.ack([await receive_one(consumer) for _ in range(4)])
        await consumer.aclose()
        assert [number_in(d) for d in await receive_all(open_handle())] == [4, 5]

    async def test_a_second_ack_changes_nothing(self, open_handle: HandleOpener) -> None:
        queue = open_handle()
        await put_number(queue, 1)
        delivery = await receive_one(queue)
        await queue.ack([delivery, delivery])
        await delivery.ack()
        assert (await queue.stats()).backlog_records == 0

    async def test_what_a_closed_consumer_did_not_ack_comes_again_in_order(self, open_handle: HandleOpener) -> None:
        producer, first = open_handle(), open_handle()
        for number in range(5):
            await put_number(producer, number)
        before = [await receive_one(first) for _ in range(4)]
        await before[1].ack()
        await first.aclose()
        after = await receive_all(open_handle())
        assert [(number_in(d), d.redelivered) for d in after] == [(0, True), (2, True), (3, True), (4, False)]

    async def test_a_redelivered_record_keeps_its_lane_and_position(self, open_handle: HandleOpener) -> None:
        producer, first = open_handle(partitions=2), open_handle()
        for number in range(8):
            await put_number(producer, number, key=str(number))
        positions = {
            number_in(d): (d.partition, d.lane, d.position) for d in [await receive_one(first) for _ in range(8)]
        }
        await first.aclose()
        assert {number_in(d): (d.partition, d.lane, d.position) for d in await receive_all(open_handle())} == positions

    async def test_a_partition_has_one_consumer_at_a_time(self, open_handle: HandleOpener) -> None:
        producer, holder, other = open_handle(), open_handle(), open_handle()
        await put_number(producer, 1)
        assert number_in(await receive_one(holder)) == 1
        await put_number(producer, 2)
        assert await other.receive(timeout=QUIET_SECONDS) is None
        await holder.aclose()
        assert [number_in(await receive_one(other)), number_in(await receive_one(other))] == [1, 2]

    async def test_consumers_of_different_partitions_do_not_disturb_each_other(self, open_handle: HandleOpener) -> None:
        producer = open_handle(partitions=2)
        left, right = open_handle(consume=[0]), open_handle(consume=[1])
        for number in range(20):
            await put_number(producer, number, key=str(number))
        received = {0: await receive_all(left), 1: await receive_all(right)}
        assert all(d.partition == partition for partition, deliveries in received.items() for d in deliveries)
        assert sorted(number_in(d) for d in [*received[0], *received[1]]) == list(range(20))

    async def test_a_stale_holder_is_refused_and_the_new_one_has_every_record(self, open_handle: HandleOpener) -> None:
        stale, new = open_handle(), open_handle()
        for number in range(3):
            await put_number(stale, number)
        delivered = [await receive_one(stale) for _ in range(3)]
        await delivered[0].ack()
        await stale.release()
        redelivered = [await receive_one(new) for _ in range(2)]
        with pytest.raises(StaleLease) as refused:
            await stale.ack(delivered[1:])
        assert refused.value.deliveries == tuple(delivered[1:])
        with pytest.raises(StaleLease):
            await delivered[1].nack()
        with pytest.raises(StaleLease):
            await delivered[2].reject("not mine any more")
        assert [number_in(d) for d in redelivered] == [1, 2]
        await new.ack(redelivered)
        stats = await new.stats()
        assert (stats.backlog_records, stats.dead_letters) == (0, 0)

    async def test_acks_that_hold_are_kept_when_others_of_the_call_are_stale(self, open_handle: HandleOpener) -> None:
        queue = open_handle()
        await put_number(queue, 0)
        await put_number(queue, 1)
        stale = [await receive_one(queue), await receive_one(queue)]
        await queue.release()
        fresh = await receive_one(queue)
        with pytest.raises(StaleLease):
            await queue.ack([*stale, fresh])
        assert [number_in(d) for d in await receive_all(queue)] == [1]

    async def test_a_record_given_back_comes_again_after_its_delay(self, open_handle: HandleOpener) -> None:
        queue = open_handle()
        await put_number(queue, 0)
        await put_number(queue, 1)
        await (await receive_one(queue)).nack(delay=2 * QUIET_SECONDS)
        assert number_in(await receive_one(queue)) == 1
        assert await queue.receive(timeout=QUIET_SECONDS) is None
        again = await receive_one(queue)
        assert (number_in(again), again.redelivered) == (0, True)

    async def test_an_expired_lease_never_makes_a_dead_letter(self, open_handle: HandleOpener) -> None:
        queue = open_handle()
        await put_number(queue, 1)
        for _ in range(12):
            await receive_one(queue)
            await queue.release()
        stats = await queue.stats()
        assert (stats.dead_letters, stats.backlog_records, stats.redeliveries) == (0, 1, 11)

    async def test_a_rejected_record_is_a_dead_letter_with_its_reason(self, open_handle: HandleOpener) -> None:
        queue = open_handle()
        await queue.put((b"not", b"msgpack"), key="k", tag="rollout-9")
        await put_number(queue, 1)
        await (await receive_one(queue)).reject("cannot be decoded")
        await (await receive_one(queue)).ack()
        stats = await queue.stats()
        assert (stats.dead_letters, stats.backlog_records, stats.backlog_bytes) == (1, 0, 0)
        (dead,) = await queue.dead_letters()
        assert [bytes(frame) for frame in dead.frames] == [b"not", b"msgpack"]
        assert (dead.key, dead.tag, dead.reason) == ("k", "rollout-9", "cannot be decoded")
        await queue.release()
        assert await queue.receive(timeout=QUIET_SECONDS) is None

    # Single-record leases

    async def test_consumers_share_the_records_of_one_partition(self, open_handle: HandleOpener) -> None:
        producer = open_handle()
        consumers = [open_handle(lease="record") for _ in range(3)]
        for number in range(30):
            await put_number(producer, number)
        received = []
        for turn in range(30):
            received.append(await receive_one(consumers[turn % 3]))
            await received[-1].ack()
        assert sorted(map(number_in, received)) == list(range(30))
        assert (await producer.stats()).backlog_records == 0

    async def test_a_single_record_goes_to_another_consumer_when_its_holder_closes(
        self, open_handle: HandleOpener
    ) -> None:
        producer, first, second = open_handle(), open_handle(lease="record"), open_handle(lease="record")
        await put_number(producer, 0)
        await put_number(producer, 1)
        assert {number_in(await receive_one(first)), number_in(await receive_one(second))} == {0, 1}
        assert await second.receive(timeout=QUIET_SECONDS) is None
        await first.aclose()
        again = await receive_one(second)
        assert again.redelivered
        await again.ack()
        assert (await producer.stats()).backlog_records == 1

    async def test_a_single_record_can_be_given_back_for_another_consumer(self, open_handle: HandleOpener) -> None:
        first, second = open_handle(lease="record"), open_handle(lease="record")
        await put_number(first, 0)
        delivery = await receive_one(first)
        await delivery.nack()
        again = await receive_one(second)
        assert (number_in(again), again.redelivered, again.position) == (0, True, delivery.position)
