"""What runs in a Ray actor: one worker process of the actor's machine, and its line, carried over calls.

The actor is to its worker what a supervisor is on one machine: when the actor is killed, the line goes dead and the
worker with it. Only lines of control cross Ray: beats one way, orders the other.
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
    """Holds one worker. An asynchronous actor: its calls wait beside each other."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def start(self, name: str, command: Sequence[str], output_path: str) -> tuple[int, int]:
        """Start the worker, with the Python of this machine; its pid, and that of the actor."""
        self._place = await LocalPlace().__aenter__()
        self._worker: LocalWorker = await self._place.start(name, (sys.executable, *command[1:]), Path(output_path))
        self._collect_task = asyncio.create_task(self._collect_lines())
        return self._worker.pid, os.getpid()

    async def next_lines(self) -> list[bytes]:
        """The lines that the worker has sent since; waits for one. An empty one is the last."""
        batch = [await self._lines.get()]
        while not self._lines.empty() and len(batch) < _MAX_LINES_PER_CALL:
            batch.append(self._lines.get_nowait())
        return [line or b"" for line in batch]

    async def send_line(self, line: bytes) -> None:
        self._worker.send_line(line)

    async def send_signal(self, signum: int) -> None:
        self._worker.send_signal(signal.Signals(signum))

    async def wait(self) -> int:
        return await self._worker.wait()

    async def _collect_lines(self) -> None:
        async for line in self._worker.read_lines():
            self._lines.put_nowait(line)
        self._lines.put_nowait(None)
