"""Where workers run, as their supervisor sees it: a place that starts them, and a process with a link to each."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Protocol, Self

from rollout.errors import RolloutError


class NotStarted(RolloutError):
    """A worker's process could not be started this time."""


class WorkerProcess(Protocol):
    """One worker, from its start to its end."""

    @property
    def pid(self) -> int:
        """The process id, on the machine where the worker runs."""

    def send_line(self, line: bytes) -> None:
        """Send a line to the worker; if the worker is gone, the line is lost."""

    def read_lines(self) -> AsyncIterator[bytes]:
        """Yield the lines that the worker sends, until it can send no more."""

    def send_signal(self, signum: Signals) -> None:
        """Send the process a signal, if it is still there."""

    def kill(self) -> None:
        """End the worker now, and everything that it started."""

    async def wait(self) -> int:
        """Wait for its end, and return its exit code; negative for the signal that ended it."""

    async def aclose(self) -> None:
        """Make sure that nothing of the worker is left."""


class Place(Protocol):
    """Starts workers. Use it as an async context manager; none of its workers outlives it."""

    async def start(self, name: str, command: Sequence[str], output_path: Path) -> WorkerProcess:
        """Start the worker of this name: `command` with the descriptor of its link as `--supervisor-fd`.

        What it prints is appended to `output_path`, up to a limit. Raises NotStarted.
        """

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
