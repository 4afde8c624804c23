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

_HEARD_AT_ONCE = 64


class WorkerActor:
    """Holds one worker. An asynchronous actor: its calls wait beside each other."""

    def __init__(self) -> None:
        self._heard: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def start(self, name: str, command: Sequence[str], output: str) -> tuple[int, int]:
        """Start the worker, with the Python of this machine; its pid, and that of the actor."""
        self._place = await LocalPlace().__aenter__()
        self._worker: LocalWorker = await self._place.start(name, (sys.executable, *command[1:]), Path(output))
        self._hearing = asyncio.create_task(self._hear())
        return self._worker.pid, os.getpid()

    async def heard(self) -> list[bytes]:
        """The lines that the worker has sent since; waits for one. An empty one is the last."""
        lines = [await self._heard.get()]
        while not self._heard.empty() and len(lines) < _HEARD_AT_ONCE:
            lines.append(self._heard.get_nowait())
        return [line or b"" for line in lines]

    async def tell(self, line: bytes) -> None:
        self._worker.tell(line)

    async def signal(self, number: int) -> None:
        self._worker.signal(signal.Signals(number))

    async def wait(self) -> int:
        return await self._worker.wait()

    async def _hear(self) -> None:
        async for line in self._worker.hear():
            self._heard.put_nowait(line)
        self._heard.put_nowait(None)
