"""Removes from a work directory what is not safe to read for code that trusts names.

A function that scores opens files by their names, with the rights of the worker. A program may have written a link to a
file of the worker, a pipe that nobody writes, or a device that never ends.
"""

import os
from pathlib import Path

from rollout.programs.directories import remove_child


def remove_unsafe_entries(directory: Path) -> list[str]:
    """Remove all links that lead out of a directory, and all pipes, sockets and devices in it; return their paths."""
    root = os.path.realpath(directory)
    removed = []
    waiting = [root]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                found = list(entries)
        except OSError:  # without access, the function cannot read it either
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif not (_leads_inside(entry.path, root) if entry.is_symlink() else entry.is_file(follow_symlinks=False)):
                remove_child(entry.path)
                removed.append(entry.path)
    return removed


def _leads_inside(link: str, root: str) -> bool:
    return os.path.realpath(link).startswith(f"{root}/")
