"""A consumer may let go of a record's frames before it acks it; the server's account stays exact."""

from dataclasses import replace

from tests.needs.services.redis_server import RedisServer
from transports import open_queue


async def test_an_ack_needs_no_frames(redis_server: RedisServer) -> None:
    async with open_queue(f"{redis_server.url}?stream=lean") as queue:
        for number in range(3):
            await queue.put((b"x" * 1000,), key=str(number))
        deliveries = [await queue.receive(timeout=10) for _ in range(3)]
        await queue.ack([replace(delivery, frames=()) for delivery in deliveries if delivery is not None])
        stats = await queue.stats()
        assert (stats.backlog_records, stats.backlog_bytes) == (0, 0)
