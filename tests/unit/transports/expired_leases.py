"""A check of `expire_leases` for any transport and kind of lease."""

import pytest

from transports import Lease, StaleLease, open_queue
from transports.testing.cases import receive_one


async def assert_a_handle_loses_its_leases_when_they_are_expired(url: str, lease: Lease) -> None:
    async with open_queue(url, lease=lease) as first, open_queue(url, lease=lease) as second:
        await first.put((b"record",), key="k")
        leased = await receive_one(first)
        assert await second.receive(timeout=0.2) is None
        await second.expire_leases(first.holder)
        again = await receive_one(second)
        assert again.redelivered
        with pytest.raises(StaleLease):
            await leased.ack()
        await again.ack()
        assert (await first.stats()).backlog_records == 0
