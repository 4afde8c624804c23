"""A Ray actor that runs one worker process on its machine, and passes on the lines of the worker's link.

The actor holds the supervisor's end of the link. So when the actor is killed, the link breaks and the worker ends. Only
these lines go through Ray: heartbeats from the worker, and instructions to the worker.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rollout.launch.local import LocalPlace, LocalWorker

_MAX_LINES_PER_CALL = 64


class WorkerActor:
    """Runs one worker. Ray calls its methods concurrently, because they are asynchronous."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def start(self, name: str, command: Sequence[str], output_path: str) -> tuple[int, int]:
        """Start the worker with the Python of this machine; return the process ids of the worker and of the actor."""
        self._place = await LocalPlace().__aenter__()
        self._worker: LocalWorker = await self._place.start(name, (sys.executable, *command[1:]), Path(output_path))
        self._collect_task = asyncio.create_task(self._collect_lines())
        return self._worker.pid, os.getpid()

    async def next_lines(self) -> list[bytes]:
        """Wait for a line from the worker, and return the lines since the last call. An empty line marks the end."""
        batch = [await self._lines.get()]
        while not self._lines.empty() and len(batch) < _MAX_LINES_PER_CALL:
            batch.append(self._lines.get_nowait())
        return [line or b"" for line in batch]

    async def send_line(self, line: bytes) -> None:
        """See `WorkerProcess.send_line`."""
        self._worker.send_line(line)

    async def send_signal(self, signum: int) -> None:
        """See `WorkerProcess.send_signal`."""
        self._worker.send_signal(signal.Signals(signum))

    async def wait(self) -> int:
        """See `WorkerProcess.wait`."""
        return await self._worker.wait()

    async def _collect_lines(self) -> None:
        async for line in self._worker.read_lines():
            self._lines.put_nowait(line)
        self._lines.put_nowait(None)
