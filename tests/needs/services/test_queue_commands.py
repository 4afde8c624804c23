"""`rollout queue` with a Redis server, and with a hub in another process."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import zmq

from tests.needs.services.redis_server import RedisServer, free_port
from transports import open_queue
from transports.codec import encode


async def report(*arguments: str) -> Any:
    def run() -> str:
        command = [sys.executable, "-m", "rollout", "queue", *arguments, "--json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    return json.loads(await asyncio.to_thread(run))


@pytest.fixture(params=["redis", "zmq"])
def url(request: pytest.FixtureRequest, start_redis: Callable[..., RedisServer]) -> str:
    if request.param == "redis":
        return start_redis().url
    return f"zmq://127.0.0.1:{free_port()}"


async def test_every_command_reaches_a_queue_of_another_process(url: str) -> None:
    async with open_queue(url) as queue:
        for number in range(4):
            await queue.put(encode({"number": number}), key="k", tag=f"record {number}")
        for _ in range(2):
            delivery = await queue.receive(timeout=10)
            assert delivery is not None
            await delivery.reject("not today")
        await queue.release()
        assert (await report("stats", url))["backlog_records"] == 2
        shown = (await report("peek", url))["records"]
        assert [(record["tag"], record["content"]) for record in shown] == [
            ("record 2", {"number": 2}),
            ("record 3", {"number": 3}),
        ]
        assert [letter["reason"] for letter in (await report("dead", url))["letters"]] == ["not today"] * 2
        assert await report("requeue", url) == {"requeued": 2, "dead_letters": 0}
        assert (await queue.stats()).backlog_records == 4
        assert await report("drain", url, "--yes") == {"drained": 4, "left": 0}
        assert (await queue.stats()).backlog_records == 0


async def test_stats_count_the_malformed_messages_that_a_hub_refused() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with open_queue(f"zmq://{address}") as queue:
        assert await queue.receive(timeout=0) is None
        stranger: Any = zmq.Context.instance().socket(zmq.DEALER)
        stranger.connect(f"tcp://{address}")
        stranger.send(b"GET / HTTP/1.1")
        while (await report("stats", f"zmq://{address}"))["refused_messages"] == 0:
            pass
        command = [sys.executable, "-m", "rollout", "queue", "stats", f"zmq://{address}"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=True)
        stranger.close()
    assert "refused" in done.stdout
    assert "1 messages; the log of the hub names senders and reasons" in done.stdout
