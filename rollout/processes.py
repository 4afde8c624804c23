"""Workers as processes of this machine.

A death is learned from waitpid, at once. Each worker leads a process group, which ends with it; a keeper process ends
those groups should this process be killed.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

_OUTPUT_BYTES = 16 << 20
_LAST_WORDS = 1.0


class LocalWorker:
    """See `rollout.places.WorkerProcess`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        output: Path,
        keeper: "Keeper",
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._keeper = keeper
        assert process.stdout is not None
        self._printing = asyncio.create_task(_keep_output(process.stdout, output))

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, line: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(line)

    async def hear(self) -> AsyncIterator[bytes]:
        with suppress(ConnectionError):
            async for line in self._reader:
                yield line

    def signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        return await self._process.wait()

    async def aclose(self) -> None:
        self.kill()
        with anyio.CancelScope(shield=True):
            await self._process.wait()
            await asyncio.wait([self._printing], timeout=_LAST_WORDS)
            self._printing.cancel()
            await asyncio.wait([self._printing])
        self._keeper.forget(self.pid)
        self._writer.close()


class Keeper:
    """The process that outlives this one by just long enough; see `rollout.keeper`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rollout.keeper"], stdin=subprocess.PIPE, start_new_session=True
        )

    def remember(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        self._tell(f"-{group}\n")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # workers also see for themselves that their supervisor is gone
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


class LocalPlace:
    """This machine. See `rollout.places.Place`."""

    async def __aenter__(self) -> Self:
        self._keeper = Keeper()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeper.close()

    async def start(self, name: str, command: Sequence[str], output: Path) -> LocalWorker:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command,
                "--supervisor-fd",
                str(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._keeper.remember(process.pid)
        reader, writer = await asyncio.open_connection(sock=ours)
        return LocalWorker(process, reader, writer, output, self._keeper)


async def _keep_output(stream: asyncio.StreamReader, path: Path) -> None:
    """Write what workers print into a file, up to a limit; the rest is read and dropped."""
    with path.open("ab", buffering=0) as file:
        while data := await stream.read(1 << 20):
            if file.tell() < _OUTPUT_BYTES:
                with suppress(OSError):
                    file.write(data[: _OUTPUT_BYTES - file.tell()])
