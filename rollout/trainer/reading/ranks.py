"""Divides the partitions of a queue among the readers of several ranks. All records of a group are in one partition."""

from urllib.parse import parse_qs

from rollout.trainer.errors import RankError
from rollout.trainer.reading.reader import TrajectoryReader
from rollout.trainer.reading.settings import ReaderSettings
from transports import open_queue
from transports.redaction import hide_passwords
from transports.urls import split_url


def open_reader(
    url: str, *, rank: int = 0, world_size: int = 1, settings: ReaderSettings | None = None
) -> TrajectoryReader:
    """Return the reader of one rank. With several ranks, the URL must have the number of partitions.

    Raises:
        RankError: there are fewer partitions than ranks, or the rank does not exist.
    """
    consume = None if world_size == 1 and rank == 0 else partitions_of(url, rank, world_size)
    return TrajectoryReader(open_queue(url, consume=consume), settings)


def partitions_of(url: str, rank: int, world_size: int) -> list[int]:
    """Return the partitions that a rank reads; a restart does not change them.

    Raises:
        RankError: there are fewer partitions than ranks, or the rank does not exist.
    """
    if not 0 <= rank < world_size:
        raise RankError(f"rank {rank} is not valid; with world_size {world_size}, use a rank of 0 to {world_size - 1}.")
    partition_count_text = parse_qs(split_url(url).query).get("partitions", ["1"])[0]
    partition_count = int(partition_count_text) if partition_count_text.isdecimal() else 0
    if partition_count < world_size:
        raise RankError(
            f"{hide_passwords(url)}: {world_size} readers need at least {world_size} partitions, but the URL has "
            f"{partition_count_text}. Use a new queue, because the number of partitions cannot change, and give "
            f"workers and trainer the same URL, such as …?partitions={8 * world_size}."
        )
    return list(range(rank, partition_count, world_size))
