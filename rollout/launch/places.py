"""The contract of a place where workers run. A place starts workers; each worker is a process with a link."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Protocol, Self

from rollout.errors import RolloutError


class NotStarted(RolloutError):
    """A worker's process could not be started. The supervisor tries again."""


class WorkerProcess(Protocol):
    """The process of one worker, as its supervisor sees it."""

    @property
    def pid(self) -> int:
        """The id of the process on the machine where the worker runs."""

    def send_line(self, line: bytes) -> None:
        """Send a line to the worker; if the worker is gone, the line is lost."""

    def read_lines(self) -> AsyncIterator[bytes]:
        """Yield the lines that the worker sends, until the link is closed."""

    def send_signal(self, signum: Signals) -> None:
        """Send a signal to the process, if it still runs."""

    def kill(self) -> None:
        """Kill the worker and the processes that it started."""

    async def wait(self) -> int:
        """Wait until the worker ends, and return its exit code. A negative code is the signal that ended it."""

    async def aclose(self) -> None:
        """Kill the worker and the processes that it started, and wait until the worker has ended."""


class Place(Protocol):
    """Starts workers. Use it as an async context manager, which ends all of its workers."""

    async def start(self, name: str, command: Sequence[str], output_path: Path) -> WorkerProcess:
        """Start a worker.

        Args:
            name: the worker's name.
            command: the worker's command line; the place adds `--supervisor-fd` with the descriptor of the link.
            output_path: the file to which the output of the worker is appended, up to a limit.

        Raises:
            NotStarted: the process could not be started.
        """

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
