"""Limits how many programs run at the same time on one machine, in all workers of a user.

    async with machine_slot(limit):
        ...

A slot is a lock on a file. The system releases it when the worker that holds it has ended.
"""

import asyncio
import fcntl
import os
import random
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

from rollout.errors import RolloutError

_POLL_SECONDS = 0.1


class SlotsUnusable(RolloutError):
    """The directory with the locks of the slots belongs to another user, or cannot be made."""


@asynccontextmanager
async def machine_slot(limit: int) -> AsyncIterator[None]:
    """Wait until fewer than `limit` slots are taken, and hold one.

    Raises:
        SlotsUnusable: the locks cannot be made.
    """
    directory = _make_directory()
    async with _queues.setdefault(asyncio.get_running_loop(), asyncio.Lock()):  # so that only the first one polls
        while (lock := _take_slot(directory, limit)) is None:  # noqa: ASYNC110 - other processes hold them
            await asyncio.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        os.close(lock)


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
"""In each event loop, those who wait for a slot stand in a queue."""


def _make_directory() -> Path:
    directory = Path(tempfile.gettempdir()) / f"rollout-slots-{os.getuid()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise SlotsUnusable(
            f"the directory {directory} for the limit of programs cannot be made: {error.strerror}; remove what is in "
            "its place, or set TMPDIR to another directory."
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise SlotsUnusable(
            f"{directory} is not a directory of your own, so it cannot limit the number of programs; remove it, or set "
            "TMPDIR to another directory."
        )
    return directory


def _take_slot(directory: Path, limit: int) -> int | None:
    """Lock the file of a free slot; return its descriptor, or None if all are taken."""
    first = random.randrange(limit)  # noqa: S311 - so that workers do not all try the same file
    for number in range(limit):
        path = directory / str((first + number) % limit)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return lock
    return None
