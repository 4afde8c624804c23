"""One queue for a test, readers of it, and what it still holds."""

from rollout.trainer import ReaderSettings, TrajectoryReader
from transports import Queue, open_queue

QUEUE = "memory://trainer-test"
SHORT_TIMEOUTS = ReaderSettings(gap_timeout=0.05, unfinished_timeout=0.1)


def reader_of(settings: ReaderSettings | None = None) -> TrajectoryReader:
    return TrajectoryReader(open_queue(QUEUE), settings)


async def backlog(queue: Queue) -> int:
    return (await queue.stats()).backlog_records
