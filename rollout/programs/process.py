"""Runs one program to its end, together with every process that it starts.

    end = await run_program(ProgramProcess(argv=("my-agent",), environ=variables, workspace=workspace, output=path))

A small process, the guardian (`rollout.programs.guardian`), starts the program and reads its output. It ends the
program and all its descendants at a limit, when this coroutine is cancelled, and when the worker dies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from rollout.errors import RolloutError
from rollout.programs.workspace import Workspace


class ProgramCannotStart(RolloutError):
    """The program could not be started: its file is missing, is not executable, or its sandbox refuses."""

    infrastructure = True


class GuardianLost(RolloutError):
    """The guardian of a program was killed, so nobody knows how the program ended."""

    infrastructure = True


class EndReason(Enum):
    """Why a program ended."""

    EXITED = "exited"
    TIMEOUT = "timeout"
    OUTPUT = "output"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class ProgramLimits:
    """What a program and its descendants may use. A cgroup enforces memory and processes, where the machine has one.

    Attributes:
        seconds: the time until it is ended.
        output_bytes: the bytes that it may print until it is ended.
        memory_bytes: the memory of all its processes; None: no limit.
        processes: the number of its processes and threads; None: no limit.
    """

    seconds: float
    output_bytes: int
    memory_bytes: int | None = None
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class ProgramProcess:
    """A program to run.

    Attributes:
        argv: the program and its arguments.
        environ: all its environment variables.
        directory: its working directory.
        workspace: the directories that exist for it alone. The guardian removes them if the worker dies.
        output: the file for what it prints, without keys. Only the beginning and the end of long output are kept.
        limits: what it may use.
        stdin: the text that it can read.
        cleanup: commands to run when it has ended, such as one that removes a container.
    """

    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    directory: Path
    workspace: Workspace
    output: Path
    limits: ProgramLimits
    stdin: str = ""
    cleanup: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class ProgramEnd:
    """How a program ended.

    Attributes:
        reason: why it ended.
        exit_code: its exit code, or minus the number of the signal that ended it.
        seconds: how long it ran.
        output_bytes: how much it printed.
        refused_processes: whether it was refused a process because of `limits.processes`.
    """

    reason: EndReason
    exit_code: int
    seconds: float
    output_bytes: int
    refused_processes: bool = False


async def run_program(process: ProgramProcess) -> ProgramEnd:
    """Run a program, and return how it ended, when it and all its descendants have ended.

    Raises:
        ProgramCannotStart: the program could not be started.
        GuardianLost: the guardian was killed. The program and its descendants have ended anyway.
    """
    raise NotImplementedError
