"""Leases of the conformance suite: who has a record, who gets it next, and whose ack counts."""

from __future__ import annotations

import pytest

from transports.errors import StaleLease
from transports.testing.cases import QUIET, Cases, Opener, next_of, number_of, put_number, rest_of


class LeaseCases(Cases):
    """Leases of partitions and of single records, acks and redelivery."""

    async def test_an_acked_record_never_comes_again(self, opened: Opener) -> None:
        keeper, consumer = opened(), opened()
        for number in range(6):
            await put_number(keeper, number)
        await consumer.ack([await next_of(consumer) for _ in range(4)])
        await consumer.aclose()
        assert [number_of(d) for d in await rest_of(opened())] == [4, 5]

    async def test_a_second_ack_changes_nothing(self, opened: Opener) -> None:
        queue = opened()
        await put_number(queue, 1)
        delivery = await next_of(queue)
        await queue.ack([delivery, delivery])
        await delivery.ack()
        assert (await queue.stats()).backlog_records == 0

    async def test_what_a_closed_consumer_did_not_ack_comes_again_in_order(self, opened: Opener) -> None:
        keeper, first = opened(), opened()
        for number in range(5):
            await put_number(keeper, number)
        before = [await next_of(first) for _ in range(4)]
        await before[1].ack()
        await first.aclose()
        after = await rest_of(opened())
        assert [(number_of(d), d.redelivered) for d in after] == [(0, True), (2, True), (3, True), (4, False)]

    async def test_a_redelivered_record_keeps_its_lane_and_position(self, opened: Opener) -> None:
        keeper, first = opened(partitions=2), opened()
        for number in range(8):
            await put_number(keeper, number, key=str(number))
        places = {number_of(d): (d.partition, d.lane, d.position) for d in [await next_of(first) for _ in range(8)]}
        await first.aclose()
        assert {number_of(d): (d.partition, d.lane, d.position) for d in await rest_of(opened())} == places

    async def test_a_partition_has_one_consumer_at_a_time(self, opened: Opener) -> None:
        producer, holder, other = opened(), opened(), opened()
        await put_number(producer, 1)
        assert number_of(await next_of(holder)) == 1
        await put_number(producer, 2)
        assert await other.receive(timeout=QUIET) is None
        await holder.aclose()
        assert [number_of(await next_of(other)), number_of(await next_of(other))] == [1, 2]

    async def test_consumers_of_different_partitions_do_not_disturb_each_other(self, opened: Opener) -> None:
        producer = opened(partitions=2)
        left, right = opened(consume=[0]), opened(consume=[1])
        for number in range(20):
            await put_number(producer, number, key=str(number))
        got = {0: await rest_of(left), 1: await rest_of(right)}
        assert all(d.partition == partition for partition, deliveries in got.items() for d in deliveries)
        assert sorted(number_of(d) for d in [*got[0], *got[1]]) == list(range(20))

    async def test_a_stale_holder_is_refused_and_the_new_one_has_every_record(self, opened: Opener) -> None:
        stale, new = opened(), opened()
        for number in range(3):
            await put_number(stale, number)
        lent = [await next_of(stale) for _ in range(3)]
        await lent[0].ack()
        await stale.release()
        again = [await next_of(new) for _ in range(2)]
        with pytest.raises(StaleLease) as refused:
            await stale.ack(lent[1:])
        assert refused.value.deliveries == tuple(lent[1:])
        with pytest.raises(StaleLease):
            await lent[1].nack()
        with pytest.raises(StaleLease):
            await lent[2].reject("not mine any more")
        assert [number_of(d) for d in again] == [1, 2]
        await new.ack(again)
        stats = await new.stats()
        assert (stats.backlog_records, stats.dead_letters) == (0, 0)

    async def test_acks_that_hold_are_kept_when_others_of_the_call_are_stale(self, opened: Opener) -> None:
        queue = opened()
        await put_number(queue, 0)
        await put_number(queue, 1)
        stale = [await next_of(queue), await next_of(queue)]
        await queue.release()
        fresh = await next_of(queue)
        with pytest.raises(StaleLease):
            await queue.ack([*stale, fresh])
        assert [number_of(d) for d in await rest_of(queue)] == [1]

    async def test_a_record_given_back_comes_again_after_its_delay(self, opened: Opener) -> None:
        queue = opened()
        await put_number(queue, 0)
        await put_number(queue, 1)
        await (await next_of(queue)).nack(delay=2 * QUIET)
        assert number_of(await next_of(queue)) == 1
        assert await queue.receive(timeout=QUIET) is None
        again = await next_of(queue)
        assert (number_of(again), again.redelivered) == (0, True)

    async def test_a_lapsed_lease_never_makes_a_dead_letter(self, opened: Opener) -> None:
        queue = opened()
        await put_number(queue, 1)
        for _ in range(12):
            await next_of(queue)
            await queue.release()
        stats = await queue.stats()
        assert (stats.dead_letters, stats.backlog_records, stats.redeliveries) == (0, 1, 11)

    async def test_a_rejected_record_is_a_dead_letter_with_its_reason(self, opened: Opener) -> None:
        queue = opened()
        await queue.put((b"not", b"msgpack"), key="k", tag="rollout-9")
        await put_number(queue, 1)
        await (await next_of(queue)).reject("cannot be decoded")
        await (await next_of(queue)).ack()
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
            await put_number(producer, number)
        got = []
        for turn in range(30):
            got.append(await next_of(consumers[turn % 3]))
            await got[-1].ack()
        assert sorted(map(number_of, got)) == list(range(30))
        assert (await producer.stats()).backlog_records == 0

    async def test_a_record_lent_singly_comes_again_elsewhere_when_its_holder_closes(self, opened: Opener) -> None:
        producer, first, second = opened(), opened(lease="record"), opened(lease="record")
        await put_number(producer, 0)
        await put_number(producer, 1)
        assert {number_of(await next_of(first)), number_of(await next_of(second))} == {0, 1}
        assert await second.receive(timeout=QUIET) is None
        await first.aclose()
        again = await next_of(second)
        assert again.redelivered
        await again.ack()
        assert (await producer.stats()).backlog_records == 1

    async def test_a_record_lent_singly_can_be_given_back_to_another(self, opened: Opener) -> None:
        first, second = opened(lease="record"), opened(lease="record")
        await put_number(first, 0)
        lent = await next_of(first)
        await lent.nack()
        again = await next_of(second)
        assert (number_of(again), again.redelivered, again.position) == (0, True, lent.position)
