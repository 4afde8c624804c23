"""One queue for a test, its readers, and its backlog."""

from rollout.trainer import Group, ReaderSettings, TrajectoryReader
from transports import Queue, open_queue

QUEUE = "memory://trainer-test"
SHORT_TIMEOUTS = ReaderSettings(gap_timeout=0.05, unfinished_timeout=0.1)


def reader_of(settings: ReaderSettings | None = None) -> TrajectoryReader:
    return TrajectoryReader(open_queue(QUEUE), settings)


async def backlog(queue: Queue) -> int:
    return (await queue.stats()).backlog_records


async def read_groups(reader: TrajectoryReader, timeout: float = 0.02) -> list[Group]:
    """Return all groups until neither a group nor a record comes within the timeout."""
    found: list[Group] = []
    while True:
        records_before = reader.stats().records
        if (group := await reader.receive_group(timeout=timeout)) is not None:
            found.append(group)
        elif reader.stats().records == records_before:
            return found
