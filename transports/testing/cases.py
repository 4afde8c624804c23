"""What the cases of the conformance suite share: handles that are closed when a case ends, and numbers as records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

import pytest

from transports.base import Delivery, Lease, Queue
from transports.registry import open_queue

SOON = 20.0
"""Seconds in which what must arrive has arrived; no case that passes waits as long."""
QUIET = 0.15
"""Seconds after which what has not arrived is taken not to come."""


class Opener(Protocol):
    """Opens handles on the queue under test; they are closed when the case ends."""

    def __call__(
        self, *, lease: Lease = "partition", consume: Sequence[int] | None = None, **options: object
    ) -> Queue: ...


class Cases:
    """Gives each case an `opened` that opens handles on a queue of its own."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    async def opened(self, queue_url: str) -> AsyncIterator[Opener]:
        async with AsyncExitStack() as handles:

            def open_(*, lease: Lease = "partition", consume: Sequence[int] | None = None, **options: object) -> Queue:
                query = "&".join(f"{name}={value}" for name, value in options.items())
                joint = "&" if "?" in queue_url else "?"
                queue = open_queue(f"{queue_url}{joint}{query}" if query else queue_url, lease=lease, consume=consume)
                handles.push_async_callback(queue.aclose)
                return queue

            yield open_


async def put_number(queue: Queue, number: int, *, key: str = "k") -> None:
    await queue.put((str(number).encode(),), key=key)


def number_of(delivery: Delivery) -> int:
    return int(bytes(delivery.frames[0]))


async def next_of(queue: Queue) -> Delivery:
    delivery = await queue.receive(timeout=SOON)
    assert delivery is not None, f"nothing came from {queue.url} within {SOON} s"
    return delivery


async def rest_of(queue: Queue) -> list[Delivery]:
    """Everything that comes until nothing comes."""
    deliveries = []
    while (delivery := await queue.receive(timeout=QUIET)) is not None:
        deliveries.append(delivery)
    return deliveries
