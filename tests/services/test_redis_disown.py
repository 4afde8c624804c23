"""A consumer whose process is known to be dead need not be waited for, on Redis either."""

import pytest

from tests.services.redis_server import RedisServer
from transports import StaleLease, open_queue


@pytest.mark.parametrize("lease", ["record", "partition"])
async def test_a_disowned_handle_has_lost_its_leases(redis_server: RedisServer, lease: str) -> None:
    url = f"{redis_server.url}?stream=disowned-{lease}&lease_time=600"
    async with open_queue(url, lease=lease) as first, open_queue(url, lease=lease) as second:  # type: ignore[arg-type]
        await first.put((b"record",), key="k")
        lent = await first.receive(timeout=10)
        assert lent is not None
        assert await second.receive(timeout=0.2) is None
        await second.disown(first.holder)
        again = await second.receive(timeout=10)
        assert again is not None
        assert again.redelivered
        with pytest.raises(StaleLease):
            await lent.ack()
        await again.ack()
        assert (await first.stats()).backlog_records == 0
