"""A consumer whose process is known to be dead need not be waited for, on Redis either."""

import pytest

from tests.needs.services.redis_server import RedisServer
from tests.unit.transports.expired_leases import assert_a_handle_loses_its_leases_when_they_are_expired
from transports import Lease


@pytest.mark.parametrize("lease", ["record", "partition"])
async def test_a_handle_loses_its_leases_when_they_are_expired(redis_server: RedisServer, lease: Lease) -> None:
    url = f"{redis_server.url}?stream=expired-{lease}&lease_time=600"
    await assert_a_handle_loses_its_leases_when_they_are_expired(url, lease)
