"""Workers as processes of this machine.

The end of a worker is noticed at once, even if a process that it started still holds its output. For this, we make the
pipe for the output ourselves: asyncio would wait until a pipe that it made is closed. Each worker leads a process
group, which ends with it. A reaper process kills those groups if this process is killed.
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

_MAX_OUTPUT_BYTES = 16 << 20
_MAX_LINE_BYTES = 16 << 20
"""Large, because a worker's first heartbeat contains all of its metrics."""
_OUTPUT_FLUSH_TIMEOUT = 1.0


class LocalWorker:
    """See `rollout.launch.places.WorkerProcess`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        output_task: "asyncio.Task[None]",
        reaper: "ReaperProcess",
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._output_task = output_task
        self._reaper = reaper

    @property
    def pid(self) -> int:
        return self._process.pid

    def send_line(self, line: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(line)

    async def read_lines(self) -> AsyncIterator[bytes]:
        with suppress(ConnectionError):
            async for line in self._reader:
                yield line

    def send_signal(self, signum: signal.Signals) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        return await self._process.wait()

    async def aclose(self) -> None:
        self.kill()
        with anyio.CancelScope(shield=True):
            await self._process.wait()
            await asyncio.wait([self._output_task], timeout=_OUTPUT_FLUSH_TIMEOUT)
            self._output_task.cancel()
            await asyncio.wait([self._output_task])
        self._reaper.remove_group(self.pid)
        self._writer.close()


class ReaperProcess:
    """The process that kills the workers if this process was killed; see `rollout.launch.reaper`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rollout.launch.reaper"], stdin=subprocess.PIPE, start_new_session=True
        )

    def add_group(self, group: int) -> None:
        self._write_line(f"+{group}\n")

    def remove_group(self, group: int) -> None:
        self._write_line(f"-{group}\n")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _write_line(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # workers also notice by themselves that their supervisor is gone
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


class LocalPlace:
    """This machine. See `rollout.launch.places.Place`."""

    async def __aenter__(self) -> Self:
        self._reaper = ReaperProcess()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reaper.close()

    async def start(self, name: str, command: Sequence[str], output_path: Path) -> LocalWorker:
        supervisor_socket, worker_socket = socket.socketpair()
        output_read_fd, output_write_fd = os.pipe()
        output_task = asyncio.create_task(_copy_output(output_read_fd, output_path))
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                "--supervisor-fd",
                str(worker_socket.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=output_write_fd,
                stderr=subprocess.STDOUT,
                pass_fds=(worker_socket.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            supervisor_socket.close()
            raise NotStarted(f"no process for {name}: {error}") from error
        finally:
            os.close(output_write_fd)
            worker_socket.close()
        self._reaper.add_group(process.pid)
        reader, writer = await asyncio.open_connection(sock=supervisor_socket, limit=_MAX_LINE_BYTES)
        return LocalWorker(process, reader, writer, output_task, self._reaper)


async def _copy_output(read_fd: int, path: Path) -> None:
    """Write what a worker prints into a file, up to a limit; the rest is read and dropped."""
    reader = asyncio.StreamReader()
    with path.open("ab", buffering=0) as file, os.fdopen(read_fd, "rb", buffering=0) as pipe_file:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe_file
        )
        try:
            while data := await reader.read(1 << 20):
                if file.tell() < _MAX_OUTPUT_BYTES:
                    with suppress(OSError):
                        file.write(data[: _MAX_OUTPUT_BYTES - file.tell()])
        finally:
            transport.close()
