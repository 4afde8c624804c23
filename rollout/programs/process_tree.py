"""Finds and kills the processes of a program, also those that hide: with sessions of their own, or with other parents.

This module imports only the standard library. Without /proc, as on macOS, it finds nothing.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator

from rollout.programs.cgroups import ControlGroup

_ENDED = "ZX"
"""The states of a process that has ended, but that its parent has not waited for."""
_PAUSE_SECONDS = 0.005
"""The time until we look again whether killed processes are gone."""


def find_descendants(ancestor: int) -> set[int]:
    """Return the pids of all descendants of a process that are not zombies."""
    return _descendants({ancestor}, list(_read_processes()))


def find_marked(setting: str, session: int | None) -> set[int]:
    """Return the pids of the processes with this `VARIABLE=value` in their environment, or in this session.

    Their descendants are returned, too. The environment of a process is that of its last exec.
    """
    mark = b"\0" + os.fsencode(setting) + b"\0"
    processes = list(_read_processes())
    found = {
        pid
        for pid, state, _, its_session in processes
        if state not in _ENDED and (its_session == session or mark in _read_environ(pid))
    }
    return (found | _descendants(found, processes)) - {os.getpid()}


def kill_all(find: Callable[[], set[int]], group: ControlGroup | None, seconds: float) -> set[int]:
    """Kill the processes that `find` returns and those of the cgroup, until there are none; return what is left.

    Processes that fork all the time cannot outrun this. A cgroup refuses new processes first. Without one, all
    processes are stopped before the first one is killed, so that no process sees a death and starts another one.

    Args:
        find: returns the processes that still live.
        group: the cgroup of the program.
        seconds: the time after which we give up. Only a process that waits in the kernel lives so long.
    """
    deadline = time.monotonic() + seconds
    can_fork = group is None or not group.refuse_processes()
    stopped: set[int] = set()
    while True:
        found = find() if group is None else find() | _alive(group.pids())
        if not found or time.monotonic() > deadline:
            return found
        if can_fork and found - stopped and time.monotonic() < deadline - seconds / 2:
            _send(signal.SIGSTOP, found - stopped)
            stopped |= found
            continue
        if group is not None:
            group.kill()
        _send(signal.SIGKILL, found)
        time.sleep(_PAUSE_SECONDS)


def _descendants(ancestors: set[int], processes: list[tuple[int, str, int, int]]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, _, parent, _ in processes:
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = list(ancestors)
    while waiting:
        new = [pid for pid in children.get(waiting.pop(), ()) if pid not in found]
        found.update(new)
        waiting += new
    return {pid for pid, state, _, _ in processes if pid in found and state not in _ENDED}


def _send(number: signal.Signals, pids: set[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):  # it has ended, or has another user now
            continue


def _alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if (stat := _read_stat(pid)) is not None and stat[1] not in _ENDED}


def _read_processes() -> Iterator[tuple[int, str, int, int]]:
    """Yield the pid, the state, the parent and the session of every process."""
    try:
        names = os.listdir("/proc")
    except FileNotFoundError:
        return
    for name in names:
        if name.isdigit() and (stat := _read_stat(int(name))) is not None:
            yield stat


def _read_stat(pid: int) -> tuple[int, str, int, int] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(4096).rpartition(b")")[2].split()
        return pid, fields[0].decode(), int(fields[1]), int(fields[3])
    except (OSError, IndexError):
        return None


def _read_environ(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return b"\0" + file.read() + b"\0"
    except OSError:  # it has ended, or belongs to another user
        return b""
