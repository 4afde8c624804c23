"""The leases of a dead process can expire at once."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.transports.expired_leases import assert_a_handle_loses_its_leases_when_they_are_expired
from transports import open_queue
from transports.testing.cases import receive_one

CONSUMER = """
import asyncio, sys
from transports import open_queue

async def main():
    queue = open_queue(sys.argv[1], lease="record")
    await queue.receive(timeout=30)
    print(queue.holder, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("scheme", ["memory", "file"])
async def test_a_handle_loses_its_leases_when_they_are_expired(scheme: str, tmp_path: Path) -> None:
    url = "memory://expired" if scheme == "memory" else f"file://{tmp_path}"
    await assert_a_handle_loses_its_leases_when_they_are_expired(url, "record")


async def test_another_consumer_gets_the_records_of_a_dead_process_at_once(tmp_path: Path) -> None:
    url = f"file://{tmp_path}?lease_time=600"
    async with open_queue(url, lease="record") as queue:
        await queue.put((b"record",), key="k")
        consumer = await asyncio.create_subprocess_exec(sys.executable, "-c", CONSUMER, url, stdout=subprocess.PIPE)
        assert consumer.stdout is not None
        holder = (await consumer.stdout.readline()).decode().strip()
        consumer.kill()
        await consumer.wait()
        assert await queue.receive(timeout=0.2) is None
        await queue.expire_leases(holder)
        again = await receive_one(queue)
        await again.ack()


async def test_an_unknown_holder_changes_nothing(tmp_path: Path) -> None:
    async with open_queue(f"file://{tmp_path}", lease="record") as queue:
        await queue.expire_leases("0" * 16)
        with pytest.raises(ValueError, match="not the name of a holder"):
            await queue.expire_leases("../p0/lease.0")
