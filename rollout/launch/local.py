"""Runs workers as processes of this machine.

The end of a worker is noticed at once, even if a process that it started still has the worker's output open. For this,
we make the pipe for the output ourselves, because asyncio would wait until its own pipe is closed. Each worker leads a
process group, which is killed when the worker ends. A reaper process kills these groups if this process is killed.
"""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from rollout.launch.places import NotStarted
from rollout.reaper import ReaperProcess

_MAX_OUTPUT_BYTES = 16 << 20
_MAX_LINE_BYTES = 16 << 20
"""Large, because the reason of a failure may be a long text."""
_OUTPUT_FLUSH_TIMEOUT = 1.0


class LocalWorker:
    """A worker process of this machine. See `rollout.launch.places.WorkerProcess`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        output_task: "asyncio.Task[None]",
        reaper: ReaperProcess,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._output_task = output_task
        self._reaper = reaper

    @property
    def pid(self) -> int:
        """See `WorkerProcess.pid`."""
        return self._process.pid

    def send_line(self, line: bytes) -> None:
        """See `WorkerProcess.send_line`."""
        if not self._writer.is_closing():
            self._writer.write(line)

    async def read_lines(self) -> AsyncIterator[bytes]:
        """See `WorkerProcess.read_lines`."""
        with suppress(ConnectionError):
            async for line in self._reader:
                yield line

    def send_signal(self, signum: signal.Signals) -> None:
        """See `WorkerProcess.send_signal`."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """See `WorkerProcess.kill`."""
        _kill_group(self.pid)

    async def wait(self) -> int:
        """See `WorkerProcess.wait`."""
        return await self._process.wait()

    async def aclose(self) -> None:
        """See `WorkerProcess.aclose`."""
        await _end_process(self._process, self._output_task, self._reaper)
        self._writer.close()


class LocalPlace:
    """Starts workers on this machine. See `rollout.launch.places.Place`."""

    async def __aenter__(self) -> Self:
        self._reaper = ReaperProcess()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reaper.close()

    async def start(self, name: str, command: Sequence[str], output_path: Path) -> LocalWorker:
        """See `Place.start`."""
        try:
            async with AsyncExitStack() as on_failure:
                return await self._start(on_failure, command, output_path)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise NotStarted(f"the process of {name} could not start: {where}{error.strerror or error}") from error

    async def _start(self, on_failure: AsyncExitStack, command: Sequence[str], output_path: Path) -> LocalWorker:
        # The file is opened before the worker starts. Without it, nobody would read the output, and the worker would
        # block.
        output_file = on_failure.enter_context(output_path.open("ab", buffering=0))
        supervisor_socket, worker_socket = socket.socketpair()
        on_failure.callback(supervisor_socket.close)
        with worker_socket:
            output_read_fd, output_write_fd = os.pipe()
            pipe_file = on_failure.enter_context(os.fdopen(output_read_fd, "rb", buffering=0))
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
            finally:
                os.close(output_write_fd)
        output_task = asyncio.create_task(_copy_output(pipe_file, output_file))
        on_failure.push_async_callback(_end_process, process, output_task, self._reaper)
        self._reaper.add_group(process.pid)
        reader, writer = await asyncio.open_connection(sock=supervisor_socket, limit=_MAX_LINE_BYTES)
        on_failure.pop_all()
        return LocalWorker(process, reader, writer, output_task, self._reaper)


async def _end_process(
    process: asyncio.subprocess.Process, output_task: "asyncio.Task[None]", reaper: ReaperProcess
) -> None:
    _kill_group(process.pid)
    with anyio.CancelScope(shield=True):
        await process.wait()
        await asyncio.wait([output_task], timeout=_OUTPUT_FLUSH_TIMEOUT)
        output_task.cancel()
        await asyncio.wait([output_task])
    reaper.remove_group(process.pid)


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


async def _copy_output(pipe_file: FileIO, file: FileIO) -> None:
    """Copy the output of a worker into a file, up to a limit, and discard the rest."""
    reader = asyncio.StreamReader()
    with file, pipe_file:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe_file
        )
        try:
            while data := await reader.read(1 << 20):
                with suppress(OSError):
                    if file.tell() < _MAX_OUTPUT_BYTES:
                        file.write(data[: _MAX_OUTPUT_BYTES - file.tell()])
        finally:
            transport.close()
