"""Conformance tests of limits: when new work must wait, and when a record is refused."""

from __future__ import annotations

import asyncio

import pytest

from transports.errors import AdmissionTimeout, QueueFull, RecordTooLarge
from transports.testing.cases import (
    ARRIVAL_TIMEOUT,
    QUIET_SECONDS,
    ConformanceCases,
    HandleOpener,
    put_number,
    receive_all,
    receive_one,
)


class LimitCases(ConformanceCases):
    """Tests the high water and the hard limit."""

    async def test_new_work_is_admitted_up_to_the_high_water(self, open_handle: HandleOpener) -> None:
        queue = open_handle(high_water=1000)
        await queue.admit(timeout=0)
        await queue.put((bytes(1000),), key="k")
        await queue.admit(timeout=0)

    async def test_admission_over_the_high_water_times_out_and_names_the_backlog(
        self, open_handle: HandleOpener
    ) -> None:
        queue = open_handle(high_water=1000)
        await queue.put((bytes(700),), key="k")
        await queue.put((bytes(301),), key="k")
        with pytest.raises(AdmissionTimeout, match=r"2 records with 1001 bytes"):
            await queue.admit(timeout=0.02)

    async def test_admission_counts_what_is_delivered_and_not_acked(self, open_handle: HandleOpener) -> None:
        queue = open_handle(high_water_records=0)
        await put_number(queue, 1)
        delivery = await receive_one(queue)
        waiting = asyncio.create_task(queue.admit(timeout=ARRIVAL_TIMEOUT))
        await asyncio.sleep(QUIET_SECONDS)
        assert not waiting.done()
        await delivery.ack()
        await waiting

    async def test_records_of_started_work_are_accepted_over_the_high_water(self, open_handle: HandleOpener) -> None:
        queue = open_handle(high_water=100, hard_limit=10_000)
        for number in range(5):
            await queue.put((bytes(99), bytes([number])), key="k")
        assert (await queue.stats()).backlog_bytes == 500

    async def test_the_hard_limit_refuses_a_put_and_changes_nothing(self, open_handle: HandleOpener) -> None:
        queue = open_handle(high_water=1000, hard_limit=1000)
        await queue.put((b"a" * 600,), key="k")
        with pytest.raises(QueueFull, match="1000"):
            await queue.put((b"b" * 600,), key="k")
        await queue.put((b"c" * 400,), key="k")
        assert [bytes(d.frames[0])[:1] for d in await receive_all(queue)] == [b"a", b"c"]

    async def test_a_record_that_can_never_fit_is_refused_by_another_name(self, open_handle: HandleOpener) -> None:
        with pytest.raises(RecordTooLarge, match="1001"):
            await open_handle(high_water=1000, hard_limit=1000).put((bytes(1001),), key="k")
