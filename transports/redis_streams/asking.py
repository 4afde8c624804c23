"""Asks a Redis server about a queue, and creates and changes nothing there."""

from __future__ import annotations

from secrets import token_hex

from transports.errors import QueueURLError
from transports.redis_streams import scripts
from transports.redis_streams.options import parse_redis_url
from transports.redis_streams.server import RedisClient, damaged_key_error


async def ask_redis_queue(url: str) -> int | None:
    """Return the number of partitions of a queue, or None if the server does not have this queue.

    The call proves that the server can be reached, accepts the login, runs scripts and takes writes.

    Raises:
        QueueStorageError: the server cannot be reached, refuses the login, or takes no writes.
        QueueURLError: the queue has another number of partitions than the URL.
        QueueCorrupt: a key of the queue is damaged.
    """
    options = parse_redis_url(url)
    prefix = f"{{{options.stream}}}"
    server = RedisClient(url, options.ca_file)
    try:
        keys = [f"{prefix}:queue", f"{prefix}:asked:{token_hex(8)}"]
        partitions, problem = await server.run(scripts.ASK_QUEUE, keys, [prefix])
    finally:
        await server.aclose()
    if problem:
        raise damaged_key_error(server.url, problem)
    if partitions and options.partitions not in (None, partitions):
        raise QueueURLError(f"{server.url}: the queue was created with partitions={partitions}; use that number")
    return partitions or None
