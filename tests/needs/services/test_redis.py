"""`redis://` against a real server: the contract, and the errors of the server."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.needs.services.redis_server import RedisServer, redis_binaries
from transports import Lease, QueueCorrupt, QueueStorageError, StaleLease, open_queue
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


async def test_a_server_that_stays_away_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transports.redis_streams.server.RETRY_SECONDS", 0.1)
    monkeypatch.setattr("transports.redis_streams.server._reached_addresses", {"127.0.0.1:1"})
    queue = open_queue("redis://127.0.0.1:1/0")
    with pytest.raises(QueueStorageError, match="could not be reached"):
        await queue.stats()
    await queue.aclose()


async def test_a_server_that_was_never_there_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setattr("transports.redis_streams.server._FIRST_ANSWER_SECONDS", 0.0)
    monkeypatch.setattr("transports.redis_streams.server.RETRY_SECONDS", 3600.0)
    queue = open_queue(f"redis://127.0.0.1:{unused_tcp_port}/0")
    with pytest.raises(QueueStorageError, match=r"no server listens at this address \(.+\)\. Start the Redis server"):
        async with asyncio.timeout(30):
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
    url = f"{redis_server.url}?stream=expiring&lease_time=0.1"
    async with open_queue(url) as frozen, open_queue(url) as other:
        await frozen.put((b"0",), key="k")
        leased = await frozen.receive(timeout=10)
        taken = await other.receive(timeout=10)
        assert leased is not None
        assert taken is not None
        assert taken.redelivered
        with pytest.raises(Exception, match="has ended"):
            await leased.ack()
        await taken.ack()
        assert (await other.stats()).backlog_records == 0


# What another program does in the same server


@pytest.fixture
def stranger(redis_server: RedisServer) -> Any:
    return redis.Redis.from_url(redis_server.url)


@pytest.fixture
def url(redis_server: RedisServer, tmp_path: Path) -> str:
    return f"{redis_server.url}?stream={tmp_path.name}"


@pytest.mark.parametrize("lease", ["partition", "record"])
async def test_an_entry_of_another_program_becomes_a_dead_letter(
    lease: Lease, url: str, stranger: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = f"{{{tmp_path.name}}}:p0"
    async with open_queue(url, lease=lease) as queue:
        await queue.put((b"0",), key="k")
        stranger.xadd(stream, {"garbage": "1"})
        stranger.xadd(stream, {"k": b"\xff", "t": "", "d": "x"})
        await queue.put((b"1",), key="k")
        peeked = await queue.peek(limit=10)
        assert [(record.tag[:7], bytes(record.frames[0])) for record in peeked] == [
            *[("", b"0"), ("foreign", b"garbage"), ("foreign", b"k"), ("", b"1")],
        ]
        for frame in (b"0", b"1"):
            delivery = await queue.receive(timeout=10)
            assert delivery is not None
            assert bytes(delivery.frames[0]) == frame
            await delivery.ack()
        first, second = await queue.dead_letters()
        assert first.reason == "this entry is not a record of this queue: it has no field 'k'"
        assert first.tag.startswith("foreign entry ")
        assert [bytes(frame) for frame in first.frames] == [b"garbage", b"1"]
        assert "utf-8" in second.reason
        stats = await queue.stats()
        assert (stats.backlog_records, stats.backlog_bytes, stats.dead_letters) == (0, 0, 2)
    async with open_queue(url, lease=lease) as again:
        assert await again.receive(timeout=0) is None
    (said,) = [record.getMessage() for record in caplog.records if "dead letter" in record.getMessage()]
    assert stream in said


async def test_an_entry_with_an_id_of_its_own_becomes_a_dead_letter_and_the_next_holder_starts(
    url: str, stranger: Any, tmp_path: Path
) -> None:
    async with open_queue(url) as queue:
        await queue.put((b"0",), key="k")
        first = await queue.receive(timeout=10)
        assert first is not None
        last_id = stranger.xrevrange(f"{{{tmp_path.name}}}:p0", count=1)[0][0]
        stranger.xadd(f"{{{tmp_path.name}}}:p0", {"k": "", "t": "", "d": "x"}, id=last_id.split(b"-")[0] + b"-2000000")
        assert await queue.receive(timeout=0.1) is None
        assert "its id is too large" in (await queue.dead_letters())[0].reason
    async with open_queue(url) as next_holder:
        delivery = await next_holder.receive(timeout=10)
        assert delivery is not None
        assert delivery.redelivered


@pytest.mark.parametrize("lease", ["partition", "record"])
async def test_records_that_another_program_deleted_are_passed_over(
    lease: Lease, url: str, stranger: Any, tmp_path: Path
) -> None:
    async with open_queue(url, lease=lease) as first, open_queue(url, lease=lease) as second:
        for number in range(3):
            await first.put((str(number).encode(),), key="k")
        delivery = await first.receive(timeout=10)
        assert delivery is not None
        stranger.xtrim(f"{{{tmp_path.name}}}:p0", maxlen=1, approximate=False)
        with pytest.raises(StaleLease):
            await delivery.reject("it is gone")
        await first.release()
        got = await second.receive(timeout=10)
        assert got is not None
        assert bytes(got.frames[0]) == b"2"


@pytest.mark.parametrize(
    ("suffix", "command", "problem"),
    [
        ("queue", "SET {} x", "has the type string instead of hash"),
        ("queue", "HSET {} partitions many", "has the value many"),
        ("queue", "HSET {} partitions 1000000", "has the value 1000000"),
        ("totals", "LPUSH {} x", "has the type list instead of hash"),
        ("totals", "HSET {} bytes 1.5", "has the value 1.5"),
        ("dead", "SET {} x", "has the type string instead of stream"),
        ("p0", "SADD {} x", "has the type set instead of stream"),
        ("p0:lease", "LPUSH {} x", "has the type list instead of string"),
        ("p0:epoch", "SET {} soon", "has the value soon"),
        ("p0:delivered", "SET {} 5", "has the value 5"),
    ],
)
async def test_a_key_that_another_program_uses_is_a_named_error(
    suffix: str, command: str, problem: str, url: str, stranger: Any, tmp_path: Path
) -> None:
    key = f"{{{tmp_path.name}}}:{suffix}"
    stranger.execute_command(*command.replace("{}", key).split())
    async with open_queue(url) as queue:
        with pytest.raises(QueueCorrupt, match=problem) as damaged:
            await queue.put((b"0",), key="k")
        assert key in str(damaged.value)


async def test_keys_that_are_damaged_while_a_handle_is_open_are_named_errors(
    url: str, stranger: Any, tmp_path: Path
) -> None:
    prefix = f"{{{tmp_path.name}}}"
    async with open_queue(url) as queue:
        await queue.put((b"0",), key="k")
        stranger.hset(f"{prefix}:totals", "bytes", "many")
        with pytest.raises(QueueCorrupt, match="totals is damaged"):
            await queue.stats()
        stranger.set(f"{prefix}:p0:delivered", "nowhere")
        with pytest.raises(QueueCorrupt, match="is damaged"):
            await queue.receive(timeout=0)
        stranger.delete(f"{prefix}:dead")
        stranger.set(f"{prefix}:dead", "x")
        with pytest.raises(QueueCorrupt, match="WRONGTYPE"):
            await queue.dead_letters()
