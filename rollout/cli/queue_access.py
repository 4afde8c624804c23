"""Reads, puts back and removes the records of a queue; never creates a queue."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote

from transports import DeadLetter, Delivery, Lease, Peeked, Queue, QueueStats, QueueURLError, open_queue
from transports.redaction import hide_passwords
from transports.urls import split_url

_MAX_ACKED_AT_ONCE = 32


def open_existing_queue(url: str, lease: Lease = "partition") -> Queue:
    """Open a queue that exists already.

    Raises:
        QueueURLError: there is no such queue, or it exists only within its own process.
    """
    parts = split_url(url)
    if parts.scheme == "memory":
        raise QueueURLError(
            f"{hide_passwords(url)}: a queue of memory:// exists only within its own process; look at another queue"
        )
    if parts.scheme == "file" and not (Path(unquote(parts.path)) / "queue.json").exists():
        raise QueueURLError(f"{hide_passwords(url)}: there is no queue in this directory")
    if parts.scheme == "zmq" and "serve" not in parse_qs(parts.query):
        url += f"{'&' if parts.query else '?'}serve=false"
    return open_queue(url, lease=lease)


async def read_stats(url: str) -> tuple[str, QueueStats]:
    """Return the queue's own URL, which has no password, and its statistics."""
    async with open_existing_queue(url) as queue:
        return queue.url, await queue.stats()


async def peek_records(url: str, limit: int) -> tuple[Sequence[Peeked], QueueStats]:
    """Return the oldest waiting records without leasing them, and the statistics.

    If no record waits, return the oldest acked records that the queue retains.
    """
    async with open_existing_queue(url) as queue:
        records, found = await queue.peek(limit=limit), await queue.stats()
    if not records and found.retained_records:
        async with open_existing_queue(f"{url}{'&' if split_url(url).query else '?'}replay=true") as replay:
            records = await replay.peek(limit=limit)
    return records, found


async def read_dead_letters(url: str, limit: int) -> tuple[Sequence[DeadLetter], int]:
    """Return at most `limit` dead letters, the oldest first, and the number of all dead letters."""
    async with open_existing_queue(url) as queue:
        return await queue.dead_letters(limit=limit), (await queue.stats()).dead_letters


async def requeue_dead_letters(url: str, limit: int | None) -> tuple[int, int]:
    """Put dead letters back, and return how many were put back and how many are left."""
    async with open_existing_queue(url) as queue:
        # Put back only as many as there are now, or a record that is always rejected would be put back forever.
        wanted = (await queue.stats()).dead_letters if limit is None else limit
        requeued = await queue.requeue(limit=wanted)
        return requeued, (await queue.stats()).dead_letters


async def drain_records(url: str, lease: Lease, wait: float) -> tuple[int, int]:
    """Remove at most as many records as there are now; return how many were removed and how many are left."""
    async with open_existing_queue(url, lease) as queue:
        backlog, drained = (await queue.stats()).backlog_records, 0
        while drained < backlog and (batch := await _receive(queue, min(_MAX_ACKED_AT_ONCE, backlog - drained), wait)):
            await queue.ack(batch)
            drained += len(batch)
        return drained, (await queue.stats()).backlog_records


async def _receive(queue: Queue, limit: int, wait: float) -> list[Delivery]:
    """Wait for a delivery, and return it with others that are ready; return an empty list if none comes in time."""
    batch: list[Delivery] = []
    while len(batch) < limit and (delivery := await queue.receive(timeout=0.0 if batch else wait)) is not None:
        batch.append(delivery)
    return batch
