"""Puts records when the queue admits them, and prints how much its memory grew.

Usage: `admitted_producer.py URL COUNT NBYTES`.
"""

import asyncio
import sys
from pathlib import Path

from transports import open_queue


def peak_bytes() -> int:
    """Return the peak memory of this process; `getrusage` would include the peak of the process that forked it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


async def produce(url: str, count: int, nbytes: int) -> int:
    async with open_queue(url) as queue:
        await queue.put((b"warm",), key="k")
        before = peak_bytes()
        for number in range(count):
            await queue.admit(timeout=60)
            await queue.put((number.to_bytes(4), bytes(nbytes)), key="k")
        return peak_bytes() - before


if __name__ == "__main__":
    print(asyncio.run(produce(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
