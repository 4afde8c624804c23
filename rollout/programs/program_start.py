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

_OOM_SCORE = "800"
"""If the machine itself has no memory left, the kernel kills a program rather than the worker."""
_SET_PARENT_DEATH_SIGNAL = 1
_SET_CHILD_SUBREAPER = 36
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_JOIN_SESSION_KEYRING = 1


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
    lock_fd: int
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
    step = "its process cannot be set up"
    try:
        os.setsid()
        _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)
        if group is not None:
            group.add_this_process()
        _write_oom_score()
        _leave_session_keyring()  # fails if the kernel has no keyrings, or has too many of this user
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would contain the key
        step = f"its working directory {job.directory} cannot be entered"
        os.chdir(job.directory)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        for file, stream in enumerate(streams):
            os.dup2(stream, file)
        step = ""
        os.execvpe(job.argv[0], job.argv, job.environ)  # noqa: S606 - to run the program is what we are for
    except (OSError, ValueError) as error:
        reason = f"{step}: {_describe(error)}" if step else _explain_exec(error, job)
        os.write(failure_start, reason.encode(errors="replace"))
    finally:
        os._exit(1)


def _explain_exec(error: OSError | ValueError, job: Job) -> str:
    """Return why a program cannot be executed, and what to do."""
    name = job.argv[0]
    if isinstance(error, ValueError):
        return f"an argument or a variable is not possible: {error}"
    if isinstance(error, FileNotFoundError):
        if "/" not in name:
            path = job.environ.get("PATH", os.defpath)
            return f"no directory of PATH contains it; install it, or name its path (PATH is {path})"
        if os.path.exists(name):
            return "the interpreter in its first line, or its loader, does not exist; correct the line, or install it"
        if " " in name:
            return "there is no such file; the first item is the program alone, and each argument is an item of its own"
        if not name.startswith("/"):
            return "there is no such file; a relative path begins at the work directory"
        return "there is no such file; correct the path, or install the program"
    if isinstance(error, PermissionError):
        return "its file is not executable (run chmod +x), or in a directory that this user cannot enter"
    if error.errno == errno.ENOEXEC:
        return "it is neither a program for this machine, nor a script that begins with a line such as #!/bin/sh"
    return _describe(error)


def _describe(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _write_oom_score() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(_OOM_SCORE)
    except OSError:  # no Linux, or no /proc
        return


def _leave_session_keyring() -> None:
    """Join a new session keyring, so that the program does not share the keys of the worker's session."""
    number = _KEYCTL.get(os.uname().machine)
    if sys.platform == "linux" and number is not None and sys.maxsize > 1 << 32:
        import ctypes

        ctypes.CDLL(None).syscall(ctypes.c_long(number), ctypes.c_long(_JOIN_SESSION_KEYRING), None)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
