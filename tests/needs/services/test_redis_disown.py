"""A consumer whose process is known to be dead need not be waited for, on Redis either."""

import pytest

from tests.needs.services.redis_server import RedisServer
from tests.unit.transports.disowning import assert_a_disowned_handle_has_lost_its_leases
from transports import Lease


@pytest.mark.parametrize("lease", ["record", "partition"])
async def test_a_disowned_handle_has_lost_its_leases(redis_server: RedisServer, lease: Lease) -> None:
    url = f"{redis_server.url}?stream=disowned-{lease}&lease_time=600"
    await assert_a_disowned_handle_has_lost_its_leases(url, lease)
