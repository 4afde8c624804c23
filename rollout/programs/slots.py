"""Limits how many programs run at the same time on one machine, in all workers of a user.

    async with machine_slot(limit):
        ...

A slot is a lock on a file. The system releases it when the last process that holds it has ended.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def machine_slot(limit: int) -> AsyncIterator[int]:
    """Wait until fewer than `limit` slots are taken, and hold one; yield the file descriptor of its lock."""
    raise NotImplementedError
    yield 0
