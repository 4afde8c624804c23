"""Workers as processes of this machine.

A death is learned from waitpid, at once, even if what the worker had started still holds its output: asyncio waits for
the pipes of a process that it made itself, and so this one is ours. Each worker leads a process group, which ends with
it; a keeper process ends those groups should this process be killed.
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

from rollout.launch.places import NotStarted

_OUTPUT_BYTES = 16 << 20
_LONGEST_LINE = 16 << 20
"""A worker's first beat tells all of its metrics."""
_LAST_WORDS = 1.0


class LocalWorker:
    """See `rollout.launch.places.WorkerProcess`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        printing: "asyncio.Task[None]",
        keeper: "Keeper",
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._printing = printing
        self._keeper = keeper

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
    """The process that outlives this one by just long enough; see `rollout.launch.reaper`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rollout.launch.reaper"], stdin=subprocess.PIPE, start_new_session=True
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
    """This machine. See `rollout.launch.places.Place`."""

    async def __aenter__(self) -> Self:
        self._keeper = Keeper()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeper.close()

    async def start(self, name: str, command: Sequence[str], output: Path) -> LocalWorker:
        ours, theirs = socket.socketpair()
        printed, prints = os.pipe()
        printing = asyncio.create_task(_keep_output(printed, output))
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                "--supervisor-fd",
                str(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=prints,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise NotStarted(f"no process for {name}: {error}") from error
        finally:
            os.close(prints)
            theirs.close()
        self._keeper.remember(process.pid)
        reader, writer = await asyncio.open_connection(sock=ours, limit=_LONGEST_LINE)
        return LocalWorker(process, reader, writer, printing, self._keeper)


async def _keep_output(pipe: int, path: Path) -> None:
    """Write what workers print into a file, up to a limit; the rest is read and dropped."""
    printed = asyncio.StreamReader()
    with path.open("ab", buffering=0) as file, os.fdopen(pipe, "rb", buffering=0) as end:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(printed), end
        )
        try:
            while data := await printed.read(1 << 20):
                if file.tell() < _OUTPUT_BYTES:
                    with suppress(OSError):
                        file.write(data[: _OUTPUT_BYTES - file.tell()])
        finally:
            transport.close()
