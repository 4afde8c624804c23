"""A queue on a full disk. Only root may mount one; test_file.py limits the size of files instead."""

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from transports import Queue, QueueStorageError, open_queue
from transports.testing.cases import receive_one

RECORD = bytes(range(256)) * 80


async def put_without_end(queue: Queue, accepted: list[int]) -> None:
    for number in count():
        await queue.put((str(number).encode(), RECORD), key="k")
        accepted.append(number)


if os.geteuid() == 0:

    @pytest.mark.parametrize("fsync", ["always", "batch"])
    async def test_a_full_disk_refuses_a_put_and_keeps_earlier_records(
        small_disk: Callable[[str], Path], fsync: str
    ) -> None:
        disk = small_disk("512k")
        filling = disk / "filling"
        filling.write_bytes(bytes(256 << 10))
        async with open_queue(f"file://{disk}/queue?fsync={fsync}&segment_bytes=64KB") as queue:
            accepted: list[int] = []
            with pytest.raises(QueueStorageError, match="not accepted: No space left on device"):
                await put_without_end(queue, accepted)
            assert accepted
            filling.unlink()
            await queue.put((b"-1", RECORD), key="k")
            for number in [*accepted, -1]:
                delivery = await receive_one(queue)
                assert (int(bytes(delivery.frames[0])), bytes(delivery.frames[1])) == (number, RECORD)
                await delivery.ack()
            assert (await queue.stats()).backlog_records == 0
