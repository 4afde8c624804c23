"""Ends what dead processes have left behind: programs that still run, their cgroups and their workspaces.

    remove_abandoned()      # when a worker starts

All functions block, so call them in a thread.
"""

import os
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rollout.programs.cgroups import ControlGroup, find_groups
from rollout.programs.guardian import KILL_SECONDS
from rollout.programs.process_tree import find_marked, kill_all
from rollout.programs.workspace import PREFIX, VARIABLE, Workspace, WorkspaceError, take_lock


def remove_abandoned() -> int:
    """Remove the workspaces of processes that have died, and kill what still runs in them; return their number.

    Only workspaces of our own user are removed.
    """
    return sum(map(_remove_if_abandoned, Path(tempfile.gettempdir()).glob(f"{PREFIX}*")))


def end_processes(root: Path, session: int | None, groups: Sequence[ControlGroup]) -> None:
    """Kill the processes of a program that has no guardian, and remove its cgroups.

    Args:
        root: the root of its workspace.
        session: its session, if that is known.
        groups: its cgroups.
    """

    def find() -> set[int]:
        return find_marked(f"{VARIABLE}={root}", session)

    for group in groups:
        kill_all(find, group, KILL_SECONDS)
        group.remove()
    kill_all(find, None, KILL_SECONDS)


def _remove_if_abandoned(root: Path) -> bool:
    try:
        status = root.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        lock = take_lock(root)
    except OSError:  # it is gone, or has no file for a lock
        return False
    if lock is None:
        return False
    end_processes(root, None, find_groups(root.name))
    with suppress(WorkspaceError):  # a file of another user stays; the rest is removed
        Workspace(root, lock).remove()
    return True
