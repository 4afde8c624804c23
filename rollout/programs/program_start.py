"""Turns a child of the guardian into the program.

This module imports only the standard library.
"""

import errno
import os
import resource
import signal
import sys

from rollout.programs.cgroups import ControlGroup

TYPE_CHECKING = False  # the module typing needs longer to load than all others
if TYPE_CHECKING:
    from typing import NoReturn

IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that the guardian ignores, and the program does not. The guardian ends when the worker does."""
_OOM_SCORE = "800"
"""If the machine itself has no memory left, the kernel kills a program rather than the worker."""
_SET_PARENT_DEATH_SIGNAL = 1
_SET_CHILD_SUBREAPER = 36


class CannotStart(Exception):
    """The program cannot be started; the text says why."""


class Job:
    """What the worker tells the guardian: the fields of `ProgramProcess`, and where cgroups can be made."""

    argv: list[str]
    environ: dict[str, str]
    directory: str
    root: str
    output: str
    seconds: float
    output_bytes: int
    memory_bytes: int | None
    processes: int | None
    stdin: str
    cleanup: list[list[str]]
    held_files: list[int]
    place: tuple[int, dict[str, str]] | None

    def __init__(self, fields: dict[str, object]) -> None:
        vars(self).update(fields)


def become_subreaper() -> None:
    """Make every descendant whose parent dies a child of this process. Only Linux can do that."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def become_program(
    job: Job, group: ControlGroup | None, parent: int, streams: tuple[int, int, int], failure_start: int
) -> "NoReturn":
    """Replace this child of the guardian by the program; write why that fails into `failure_start`."""
    action = "cannot be set up"
    try:
        os.setsid()
        _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)
        action = "cannot be put into its cgroup"
        if group is not None:
            group.add_this_process()
        _write_oom_score()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would contain the key
        action = f"cannot enter its working directory {job.directory}"
        os.chdir(job.directory)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, *IGNORED_SIGNALS):
            signal.signal(number, signal.SIG_DFL)
        for file, stream in enumerate(streams):
            os.dup2(stream, file)
        action = "cannot be executed"
        os.execvpe(job.argv[0], job.argv, job.environ)  # noqa: S606 - to run the program is what we are for
    except (OSError, ValueError) as error:
        os.write(failure_start, f"it {action}: {_explain(error, job)}".encode(errors="replace"))
    finally:
        os._exit(1)


def _explain(error: OSError | ValueError, job: Job) -> str:
    if isinstance(error, ValueError):
        return f"{error} in an argument or a variable"
    name = job.argv[0]
    if isinstance(error, FileNotFoundError) and os.path.isdir(job.directory):
        if "/" not in name:
            return f"no directory of PATH contains it (PATH={job.environ.get('PATH', os.defpath)})"
        if os.path.exists(name):
            return "the interpreter in its first line, or its loader, does not exist"
    if error.errno == errno.ENOEXEC:
        return "it is neither a program for this machine, nor a script that begins with a line such as #!/bin/sh"
    return error.strerror or str(error)


def _write_oom_score() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(_OOM_SCORE)
    except OSError:  # no Linux, or no /proc
        return


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
