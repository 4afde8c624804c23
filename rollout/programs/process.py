"""Runs one program to its end, together with every process that it starts.

    end = await run_program(ProgramProcess(argv=("my-agent",), environ=variables, workspace=workspace, output=path))

A small process, the guardian (`rollout.programs.guardian`), starts the program and reads its output. It ends the
program and all its descendants at a limit, when this coroutine is cancelled, and when the worker dies.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Self

import structlog

from rollout.errors import RolloutError
from rollout.programs.cgroups import ControlGroup, find_place
from rollout.programs.cleanup import run_cleanup
from rollout.programs.guardian import CLEANUP_SECONDS, GRACE_SECONDS, KILL_SECONDS
from rollout.programs.leftovers import end_processes
from rollout.programs.workspace import Workspace

log = structlog.get_logger()

_GUARDIAN_COMMAND = (
    *(sys.executable, "-I", "-S", "-X", "utf8"),  # nothing of a user is imported, which would need time or could print
    *("-c", "import sys; sys.path.append(sys.argv[1]); from rollout.programs.guardian import main; main()"),
    str(Path(__file__).parent.parent.parent),
)
_MARGIN_SECONDS = 30.0
"""How much longer than planned a guardian may need on a busy machine, before it counts as lost."""
_MAX_ANSWER_BYTES = 1 << 20


class ProgramCannotStart(RolloutError):
    """The program could not be started: its file is missing, is not executable, or its sandbox refuses."""

    infrastructure = True


class GuardianLost(RolloutError):
    """The guardian of a program was killed, so nobody knows how the program ended.

    The rollout fails, and is not tried again, because a program without a sandbox can kill its guardian itself.
    """


class EndReason(Enum):
    """Why a program ended.

    MEMORY: the system killed one of its processes because of `ProgramLimits.memory_bytes`.
    """

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
        environ: all its environment variables, with `workspace.mark`.
        directory: its working directory.
        workspace: the directories that exist for it alone. The guardian removes them if the worker dies.
        output: the file for what it prints, without keys. Only the beginning and the end of long output are kept. Its
            directory must exist.
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

    A cancelled call also returns only when nothing of the program is left. A workspace has one program at a time.

    Raises:
        ProgramCannotStart: the program could not be started.
        GuardianLost: the guardian was killed. The program and its descendants have ended anyway.
    """
    guardian = await _Guardian.start(process)
    try:
        async with asyncio.timeout(process.limits.seconds + guardian.ending_seconds):
            answer = await guardian.read_end()
    except (TimeoutError, ConnectionError):
        answer = None
    except BaseException:
        await _finish(guardian.stop)
        raise
    if answer is None:
        await _finish(guardian.end_without)
        raise GuardianLost(
            f"the guardian of the program {process.argv[0]} was killed, so nobody knows how the program ended; all "
            "processes of it that could be found were killed, too. The program can have done this; then use a sandbox. "
            "Otherwise look for the cause in the log of the machine, such as a lack of memory."
        )
    return _read_answer(process, answer)


def _read_answer(process: ProgramProcess, answer: Mapping[str, Any]) -> ProgramEnd:
    if "cannot_start" in answer:
        raise ProgramCannotStart(f"the program {process.argv[0]} cannot be started: {answer['cannot_start']}.")
    if answer["left"]:
        log.warning("processes of a program cannot be killed", pids=answer["left"], program=process.argv[0])
    if answer["incomplete_output"] is not None:
        log.warning("output is not complete", file=str(process.output), error=answer["incomplete_output"])
    return ProgramEnd(
        reason=EndReason(answer["reason"]),
        exit_code=answer["exit_code"],
        seconds=answer["seconds"],
        output_bytes=answer["output_bytes"],
        refused_processes=answer["refused_processes"],
    )


async def _finish(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run this to its end, however often this task is cancelled meanwhile. At its end, a loop cancels all its tasks."""
    task = asyncio.ensure_future(work())
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
        if task.cancelled():
            task = asyncio.ensure_future(work())
    task.result()


@cache
def _place() -> tuple[int, dict[str, str]] | None:
    return find_place()


class _Guardian:
    """The guardian of one program, as the worker sees it.

    Attributes:
        ending_seconds: how long it takes at most from the end of the program to the end of the guardian.
    """

    def __init__(self, process: ProgramProcess, guardian: asyncio.subprocess.Process) -> None:
        assert guardian.stdin is not None
        assert guardian.stdout is not None
        self._process, self._guardian = process, guardian
        self._input, self._answers = guardian.stdin, guardian.stdout
        self._session: int | None = None
        self.ending_seconds = (
            GRACE_SECONDS + 2 * KILL_SECONDS + CLEANUP_SECONDS * len(process.cleanup) + _MARGIN_SECONDS
        )

    @classmethod
    async def start(cls, process: ProgramProcess) -> Self:
        try:
            guardian = await asyncio.create_subprocess_exec(
                *_GUARDIAN_COMMAND,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
                pass_fds=(process.workspace.lock_fd,),
                limit=_MAX_ANSWER_BYTES,
            )
        except OSError as error:
            raise ProgramCannotStart(
                f"the program {process.argv[0]} cannot be started: there is no process for its guardian: "
                f"{error.strerror}. Run fewer programs at a time, or raise the limits of the machine."
            ) from error
        return cls(process, guardian)

    async def read_end(self) -> Mapping[str, Any] | None:
        """Write the job, and return what the guardian says at the end; None if it says nothing."""
        self._input.write(json.dumps(self._job()).encode() + b"\n")
        await self._input.drain()
        return await self._read_answers()

    async def _read_answers(self) -> Mapping[str, Any] | None:
        while (line := await self._answers.readline()).endswith(b"\n"):
            answer: dict[str, Any] = json.loads(line)
            if "session" not in answer:
                await self._guardian.wait()
                return answer
            self._session = answer["session"]
        return None

    async def stop(self) -> None:
        """Make the guardian end the program; return when nothing of it is left."""
        try:
            async with asyncio.timeout(self.ending_seconds):
                self._input.write(b"stop\n")
                await self._read_answers()
                is_lost = await self._guardian.wait() != 0
        except (TimeoutError, ConnectionError):
            is_lost = True
        if is_lost:
            await self.end_without()

    async def end_without(self) -> None:
        """End the guardian and all that it should have ended."""
        with suppress(ProcessLookupError):
            self._guardian.kill()
        await self._guardian.wait()
        await asyncio.to_thread(self._end_processes)

    def _end_processes(self) -> None:
        root, place = self._process.workspace.root, _place()
        end_processes(root, self._session, [] if place is None else [ControlGroup(place, root.name)])
        run_cleanup(self._process.cleanup, CLEANUP_SECONDS)

    def _job(self) -> Mapping[str, Any]:
        process, limits = self._process, self._process.limits
        return {
            "argv": process.argv,
            "environ": dict(process.environ),
            "directory": str(process.directory),
            "root": str(process.workspace.root),
            "output": str(process.output),
            "seconds": limits.seconds,
            "output_bytes": limits.output_bytes,
            "memory_bytes": limits.memory_bytes,
            "processes": limits.processes,
            "stdin": process.stdin,
            "cleanup": process.cleanup,
            "lock_fd": process.workspace.lock_fd,
            "place": _place(),
        }
