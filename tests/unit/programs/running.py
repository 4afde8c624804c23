"""Runs programs in tests, and finds their processes by a mark in their arguments, which no program can hide."""

import asyncio
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rollout.programs.cgroups import find_groups, find_place
from rollout.programs.process import ProgramEnd, ProgramLimits, ProgramProcess, run_program
from rollout.programs.workspace import Workspace
from tests.procfs import is_alive

DEADLINE_SECONDS = 60.0
_POLL_SECONDS = 0.02


def number_of_programs(plain: int, ci: int) -> int:
    """Return how many programs a test runs: in the plain suite, or with ROLLOUT_TESTS=ci or full."""
    return ci if os.environ.get("ROLLOUT_TESTS") in ("ci", "full") else plain


HIDE = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os.wait()
    sys.exit(int(sys.argv[2]))
os.setsid()
if os.fork():
    os._exit(0)
os.closerange(0, 100)
os.execve("/bin/sleep", ["sleep", sys.argv[1]], {})
"""
"""A program that leaves a daemon: two forks, a session of its own, all files closed, and nothing in its environment.

Arguments: the seconds that the daemon sleeps, and the exit code of the program.
"""


@dataclass(frozen=True)
class Programs:
    """Runs programs in one workspace.

    Attributes:
        workspace: the workspace.
        mark: an argument for `sleep`. No other process of the machine has it.
        output: the file with what the last program printed.
    """

    workspace: Workspace
    mark: str
    output: Path

    def process(
        self,
        *argv: str,
        seconds: float = DEADLINE_SECONDS,
        output_bytes: int = 1 << 20,
        memory_bytes: int | None = None,
        processes: int | None = None,
        stdin: str = "",
        environ: Mapping[str, str] | None = None,
        cleanup: tuple[tuple[str, ...], ...] = (),
        directory: Path | None = None,
    ) -> ProgramProcess:
        return ProgramProcess(
            argv=argv,
            environ={**os.environ, **self.workspace.environ(), **self.workspace.mark} if environ is None else environ,
            directory=directory or self.workspace.work,
            workspace=self.workspace,
            output=self.output,
            limits=ProgramLimits(seconds, output_bytes, memory_bytes, processes),
            stdin=stdin,
            cleanup=cleanup,
        )

    async def shell(self, script: str, **options: object) -> ProgramEnd:
        return await run_program(self.process("/bin/sh", "-c", script, **options))  # type: ignore[arg-type]

    async def python(self, code: str, *arguments: str, **options: object) -> ProgramEnd:
        return await run_program(self.process(sys.executable, "-c", code, *arguments, **options))  # type: ignore[arg-type]

    def printed(self) -> str:
        return self.output.read_text()

    def sleepers(self) -> list[int]:
        return find_by_argument(self.mark)

    async def wait_for_sleepers(self, count: int) -> None:
        """Wait until so many processes sleep."""
        await wait_until(lambda: len(self.sleepers()) >= count)

    def assert_nothing_left(self) -> None:
        assert self.sleepers() == []
        assert find_groups(self.workspace.root.name) == []
        assert find_guardians(os.getpid()) == []


def new_mark() -> str:
    """Return a number of seconds that no other process sleeps."""
    return f"9999.{uuid.uuid4().int % 10**12:012}"


def find_by_argument(argument: str) -> list[int]:
    """Return the living processes with this argument."""
    return [pid for pid in _all_pids() if argument.encode() in _arguments(pid) and is_alive(pid)]


def find_guardians(worker: int) -> list[int]:
    """Return the guardians of a worker that are alive."""
    return [pid for pid in find_children(worker) if b"rollout.programs.guardian" in b" ".join(_arguments(pid))]


def find_children(parent: int) -> list[int]:
    """Return the living children of a process."""
    return [pid for pid in _all_pids() if _parent(pid) == parent and is_alive(pid)]


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until something is true of programs that run in this event loop."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - other processes make it true
            await asyncio.sleep(_POLL_SECONDS)


async def wait_for_file(path: Path) -> None:
    """Wait until a program has made a file."""
    await wait_until(path.exists)


def wait_until_true(condition: Callable[[], object]) -> None:
    """Wait, without an event loop, until something is true."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(_POLL_SECONDS)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def peak_memory_kib(pid: int) -> int:
    """Return the highest amount of memory that a process has had."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0])


def has_children() -> bool:
    """Whether this process has a child, or a zombie."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def can_limit(controller: str) -> bool:
    """Whether this machine lets us limit memory or processes."""
    place = find_place()
    return place is not None and controller in place[1]


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
