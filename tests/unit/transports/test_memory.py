"""`memory://`: the conformance suite, and handles in several threads that share a queue by its name."""

import asyncio
import threading
from pathlib import Path

import pytest

from transports import QueueClosed, QueueURLError, open_queue
from transports.testing import QueueConformance
from transports.testing.cases import receive_one


class TestMemoryConformance(QueueConformance):
    @pytest.fixture
    def queue_url(self, tmp_path: Path) -> str:
        return f"memory://{tmp_path.name}"


async def test_a_queue_is_deleted_when_its_last_handle_closes() -> None:
    async with open_queue("memory://gone") as queue:
        await queue.put((b"x",), key="k")
    async with open_queue("memory://gone") as queue:
        assert await queue.receive(timeout=0) is None


async def test_a_queue_needs_a_name() -> None:
    with pytest.raises(QueueURLError, match="memory://tasks"):
        open_queue("memory://")


async def test_a_producer_on_another_threads_loop_wakes_a_waiting_consumer() -> None:
    async def produce() -> None:
        async with open_queue("memory://threads") as queue:
            for number in range(200):
                await queue.put((str(number).encode(),), key="k")
                if number % 20 == 0:
                    await asyncio.sleep(0.001)

    async with open_queue("memory://threads") as queue:
        thread = threading.Thread(target=lambda: asyncio.run(produce()))
        thread.start()
        got = []
        for _ in range(200):
            delivery = await receive_one(queue)
            got.append(int(bytes(delivery.frames[0])))
            await delivery.ack()
        thread.join()
    assert got == list(range(200))


async def test_a_waiting_receive_fails_when_its_handle_is_closed() -> None:
    queue = open_queue("memory://closed-under-it")
    waiting = asyncio.create_task(queue.receive(timeout=20))
    await asyncio.sleep(0)
    await queue.aclose()
    with pytest.raises(QueueClosed):
        await waiting
