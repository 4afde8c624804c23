"""Keeps files of a program, such as its logs, in the directory of the run. The copies contain no keys."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rollout.api_keys import KeyHider, hide_keys
from rollout.programs.directories import closing, made_directory, new_file, open_child, open_regular_file, remove_child
from rollout.programs.file_patterns import FoundFile, find_files
from rollout.programs.workspace import named_errors
from rollout.records.wrong_types import show_value

_MAX_FILES = 10_000
_MAX_SHOWN = 5
_BLOCK_BYTES = 1 << 20


def keep_files(source: Path, target: Path, patterns: Sequence[str], *, max_bytes: int) -> str | None:
    """Copy the files that match a pattern, without keys; return a sentence about those that were left out, or None.

    `rollout.programs.file_patterns` explains the patterns. Symbolic links, sockets and devices are not followed or
    copied. In the names of files, keys are replaced, too.

    Args:
        source: the directory with the files.
        target: the directory for the copies; it is made if a file matches, and its parent must exist.
        patterns: the patterns of paths, relative to the source.
        max_bytes: the limit for the bytes of all copies. A file that does not fit is left out.

    Raises:
        WorkspaceError: a file cannot be written into the target.
    """
    keeper = _FileKeeper(target, max_bytes)
    try:
        source_directory = open_child(source)
    except OSError as error:
        return f"no file was kept, because {source} cannot be read: {error.strerror}."
    with closing(source_directory):
        for found in find_files(source_directory, patterns):
            keeper.keep(found)
    return keeper.describe_left_out()


class _FileKeeper:
    """Copies files until their limit, and remembers which were left out."""

    def __init__(self, target: Path, max_bytes: int) -> None:
        self._target = target
        self._max_bytes = max_bytes
        self._bytes = self._files = 0
        self._too_large = _Names()
        self._unreadable = _Names()

    def keep(self, found: FoundFile) -> None:
        *parents, name = (hide_keys(part) for part in found.path.parts)
        try:
            original = open_regular_file(found.path.name, found.directory)
        except OSError:
            self._unreadable.add(found.path)
            return
        if original is None:
            return
        with original:
            size = os.fstat(original.fileno()).st_size
            if self._bytes + size > self._max_bytes or self._files == _MAX_FILES:
                self._too_large.add(found.path)
                return
            with named_errors(f"{found.path} cannot be kept"), made_directory(self._target, parents) as directory:
                with new_file(name, directory) as copy:
                    written = self._copy(original, copy)
                if written is None:
                    remove_child(name, directory)
                    self._too_large.add(found.path)
                else:
                    self._files += 1
                    self._bytes += written

    def _copy(self, original: BinaryIO, copy: BinaryIO) -> int | None:
        """Copy a file without keys. Return the bytes of the copy, or None if it is too large."""
        hider, written = KeyHider(), 0
        while block := original.read(_BLOCK_BYTES):
            written += copy.write(hider.hide(block))
            if self._bytes + written > self._max_bytes:
                return None
        written += copy.write(hider.end())
        return written if self._bytes + written <= self._max_bytes else None

    def describe_left_out(self) -> str | None:
        limit = f"the limit is {self._max_bytes:,} bytes and {_MAX_FILES:,} files"
        parts = [
            f"{names.describe()} ({reason})"
            for names, reason in ((self._too_large, limit), (self._unreadable, "not readable"))
            if names.count
        ]
        return f"these files were not kept: {'; '.join(parts)}." if parts else None


class _Names:
    """The number of some files, and the names of the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, path: PurePosixPath) -> None:
        self.count += 1
        if self.count <= _MAX_SHOWN:
            self._first.append(show_value(hide_keys(str(path))))

    def describe(self) -> str:
        more = f" and {self.count - _MAX_SHOWN:,} more" if self.count > _MAX_SHOWN else ""
        return f"{', '.join(self._first)}{more}"
