"""`redis://` against a real server: the contract, and what its refusals become."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.needs.services.redis_server import RedisServer, redis_binaries
from transports import QueueStorageError, open_queue
from transports.testing import QueueConformance


@pytest.fixture(scope="module", params=redis_binaries(), ids=lambda path: "-".join(Path(path).parts[-3:]))
def start_redis(request: pytest.FixtureRequest, start_redis: Callable[..., RedisServer]) -> Callable[..., RedisServer]:
    """Each of the servers that are here."""
    return partial(start_redis, binary=request.param)


@pytest.fixture(scope="module")
def redis_server(start_redis: Callable[..., RedisServer]) -> RedisServer:
    return start_redis()


class TestRedisConformance(QueueConformance):
    @pytest.fixture
    def queue_url(self, redis_server: RedisServer, tmp_path: Path) -> str:
        return f"{redis_server.url}?stream={tmp_path.name}"


async def test_a_server_out_of_memory_is_a_named_error_and_work_goes_on_with_room(
    start_redis: Callable[..., RedisServer],
) -> None:
    server = start_redis("--maxmemory", "4mb", "--maxmemory-policy", "noeviction")
    async with open_queue(server.url) as queue:
        outcomes = await asyncio.gather(
            *(queue.put((bytes(200_000),), key="k") for _ in range(30)), return_exceptions=True
        )
        refused = [outcome for outcome in outcomes if outcome is not None]
        assert all(isinstance(outcome, QueueStorageError) for outcome in refused)
        assert "out of memory" in str(refused[0])
        accepted = (await queue.stats()).backlog_records
        assert accepted == outcomes.count(None)
        for _ in range(accepted):
            delivery = await queue.receive(timeout=10)
            assert delivery is not None
            await delivery.ack()
        await queue.put((bytes(200_000),), key="k")


async def test_a_read_only_server_is_a_named_error(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--replicaof", "127.0.0.1", "1")
    async with open_queue(server.url) as queue:
        with pytest.raises(QueueStorageError, match="read-only"):
            await queue.put((b"x",), key="k")


async def test_a_wrong_password_is_a_named_error_that_does_not_tell_it(
    start_redis: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_redis("--requirepass", "right")
    wrong = server.url.replace("redis://", "redis://:mistaken@")
    with pytest.raises(QueueStorageError, match="password") as refused:
        async with open_queue(wrong) as queue:
            await queue.stats()
    assert "mistaken" not in str(refused.value)
    monkeypatch.setenv("REDIS_PASSWORD", "right")
    async with open_queue(server.url) as queue:
        assert (await queue.stats()).backlog_records == 0


async def test_a_server_that_is_not_there_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transports.redis_streams.server.RETRY_SECONDS", 0.1)
    queue = open_queue("redis://127.0.0.1:1/0")
    with pytest.raises(QueueStorageError, match="could not be reached"):
        await queue.stats()
    await queue.aclose()


async def test_a_put_that_waits_for_a_restarted_server_is_stored_once(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--appendonly", "yes")
    async with open_queue(server.url) as queue:
        await queue.put((b"0",), key="k")
        server.kill()
        waiting = asyncio.create_task(queue.put((b"1",), key="k"))
        await asyncio.sleep(0.1)
        server.start()
        await waiting
        got = [await queue.receive(timeout=10) for _ in range(2)]
        assert [bytes(delivery.frames[0]) for delivery in got if delivery is not None] == [b"0", b"1"]
        assert (await queue.stats()).backlog_records == 2


async def test_a_lease_that_is_not_renewed_goes_to_another(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transports.redis_streams.server.LeaseRenewer.set_leases", lambda *_: None)
    url = f"{redis_server.url}?stream=lapsing&lease_time=0.1"
    async with open_queue(url) as frozen, open_queue(url) as other:
        await frozen.put((b"0",), key="k")
        lent = await frozen.receive(timeout=10)
        taken = await other.receive(timeout=10)
        assert lent is not None
        assert taken is not None
        assert taken.redelivered
        with pytest.raises(Exception, match="no longer lent"):
            await lent.ack()
        await taken.ack()
        assert (await other.stats()).backlog_records == 0
