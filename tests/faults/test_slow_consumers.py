"""A consumer that is slower than its producer costs the producer no more memory than the high water."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs.services.redis_server import RedisServer, free_port
from transports import Delivery, Queue, open_queue

RECORDS, RECORD_BYTES = 100, 1_000_000
HIGH_WATER = 8_000_000
SLACK = 24_000_000
"""Bytes that a process may need besides: buffers of sockets and of the allocator, and the record that it sends."""
BACKENDS = ["file", *(["redis", "zmq"] if os.environ.get("ROLLOUT_SERVICES") == "1" else [])]


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "redis":
        server = RedisServer(tmp_path)
        yield server.url
        server.kill()
    elif request.param == "zmq":
        yield f"zmq://127.0.0.1:{free_port()}"
    else:
        yield f"file://{tmp_path}/queue"


async def test_a_slow_consumer_costs_its_producer_no_more_memory_than_the_high_water(url: str) -> None:
    script = str(Path(__file__).with_name("admitted_producer.py"))
    options = "&serve=false" if url.startswith("zmq") else ""
    where = f"{url}?high_water={HIGH_WATER}{options}"
    async with open_queue(url) as consumer:
        await consumer.receive(timeout=0)  # starts the hub of a zmq queue
        producer = await asyncio.create_subprocess_exec(
            *(sys.executable, script, where, str(RECORDS), str(RECORD_BYTES)), stdout=subprocess.PIPE
        )
        most = 0
        for _ in range(RECORDS + 1):
            delivery = await receive_one(consumer)
            await asyncio.sleep(0.002)
            most = max(most, (await consumer.stats()).backlog_bytes)
            await delivery.ack()
        grown = int((await producer.communicate())[0])
    print(
        f"{url.partition(':')[0]}: backlog at most {most / 1e6:.1f} MB, producer +{grown / 1e6:.1f} MB",
        file=sys.__stdout__,
    )
    assert most <= HIGH_WATER + RECORD_BYTES + 4
    assert grown <= HIGH_WATER + SLACK


async def receive_one(queue: Queue) -> Delivery:
    delivery = await queue.receive(timeout=60)
    assert delivery is not None
    return delivery
