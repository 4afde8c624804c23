"""Puts the status of a launch in every partition of the trajectories queue."""

from dataclasses import replace
from itertools import count

from rollout.records.launch_status import LaunchStatus
from rollout.records.wire import encode_status
from transports import Queue
from transports.base import partition_of


async def put_in_every_partition(queue: Queue, status: LaunchStatus) -> None:
    """Put a status in every partition of a queue. Raises QueueError if the queue does not accept it."""
    partitions = await queue.partition_count()
    for partition in range(partitions):
        placed = replace(status, partition=partition, partitions=partitions)
        await queue.put(encode_status(placed), key=_key_of_partition(partition, partitions), tag=placed.tag)


def _key_of_partition(partition: int, partitions: int) -> str:
    """Return a key whose records are in this partition."""
    return next(key for number in count() if partition_of(key := f"launch-{number}", partitions) == partition)
