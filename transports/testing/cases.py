"""Shared code of the conformance tests. It opens and closes handles, and puts and receives numbers as records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

import pytest

from transports.base import Delivery, Lease, Queue
from transports.registry import open_queue

ARRIVAL_TIMEOUT = 20.0
"""Seconds within which an expected record must arrive. A test that passes waits for a shorter time."""
QUIET_SECONDS = 0.15
"""Seconds without a record after which a test assumes that no record will come."""


class HandleOpener(Protocol):
    """Opens handles on the queue under test. All handles are closed when the test ends."""

    def __call__(self, *, lease: Lease = "partition", consume: Sequence[int] | None = None, **options: object) -> Queue:
        """Return a new handle. `options` are added to the URL of the queue."""


class ConformanceCases:
    """The base class of all conformance tests. Each test has its own queue, and opens handles with `open_handle`."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    async def open_handle(self, queue_url: str) -> AsyncIterator[HandleOpener]:
        """Yield a function that opens handles on the queue of this test; close them at the end."""
        async with AsyncExitStack() as handles:

            def open_one(
                *, lease: Lease = "partition", consume: Sequence[int] | None = None, **options: object
            ) -> Queue:
                query = "&".join(f"{name}={value}" for name, value in options.items())
                separator = "&" if "?" in queue_url else "?"
                queue = open_queue(
                    f"{queue_url}{separator}{query}" if query else queue_url, lease=lease, consume=consume
                )
                handles.push_async_callback(queue.aclose)
                return queue

            yield open_one


async def put_number(queue: Queue, number: int, *, key: str = "k") -> None:
    """Put a record that contains a number."""
    await queue.put((str(number).encode(),), key=key)


def number_in(delivery: Delivery) -> int:
    """Return the number in a record of `put_number`."""
    return int(bytes(delivery.frames[0]))


async def receive_one(queue: Queue) -> Delivery:
    """Return the next record. Fail if no record arrives within ARRIVAL_TIMEOUT."""
    delivery = await queue.receive(timeout=ARRIVAL_TIMEOUT)
    assert delivery is not None, f"no record came from {queue.url} within {ARRIVAL_TIMEOUT} s"
    return delivery


async def receive_all(queue: Queue) -> list[Delivery]:
    """Receive records until none comes for QUIET_SECONDS. Return all of them."""
    deliveries = []
    while (delivery := await queue.receive(timeout=QUIET_SECONDS)) is not None:
        deliveries.append(delivery)
    return deliveries
