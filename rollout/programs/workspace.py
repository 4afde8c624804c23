"""The directories that exist for one program alone: its work directory, its home, and its directory of temporary files.

    workspace = Workspace.create()
    copy_tree(template, workspace.work)
    ...
    workspace.remove()

All functions block, so call them in a thread.
"""

import fcntl
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self

from rollout.errors import RolloutError
from rollout.programs.directories import (
    LOCK_NAME,
    closing,
    made_directory,
    make_child,
    new_file,
    open_regular_file,
    remove_child,
    remove_root,
)
from rollout.records.wrong_types import show_value

PREFIX = "rollout-program-"
"""The beginning of the names of all workspaces in the system's directory of temporary files."""
VARIABLE = "ROLLOUT_WORKSPACE"
"""The environment variable by which the processes of a program are recognised; its value is the path of the root."""
_BLOCK_BYTES = 1 << 20
_MAX_LEVELS = 100
"""The limit for the levels of a directory that is copied; each level has two open files."""
_COPIED_MODE = 0o777


class WorkspaceError(RolloutError):
    """A file of a program cannot be written into its workspace or removed, or a template cannot be copied."""


@dataclass(frozen=True, slots=True)
class ProgramDirectories:
    """The paths of a program's directories.

    Attributes:
        root: the directory with all others.
    """

    root: Path

    @property
    def work(self) -> Path:
        """The working directory of the program."""
        return self.root / "work"

    @property
    def home(self) -> Path:
        """The home of the program."""
        return self.root / "home"

    @property
    def tmp(self) -> Path:
        """The directory for the temporary files of the program."""
        return self.root / "tmp"

    @property
    def gateway_directory(self) -> Path:
        """The directory with nothing but the unix socket of the gateway; a sandbox can mount it."""
        return self.root / "gateway"

    @property
    def gateway_socket(self) -> Path:
        """The unix socket at which the gateway listens for this program alone."""
        return self.gateway_directory / "socket"

    @property
    def writable(self) -> tuple[Path, Path, Path]:
        """The directories that the program may write."""
        return self.work, self.home, self.tmp

    def environ(self) -> Mapping[str, str]:
        """Return the variables that name the directories: HOME, TMPDIR and the XDG directories."""
        return {
            "HOME": str(self.home),
            "TMPDIR": str(self.tmp),
            "TMP": str(self.tmp),
            "TEMP": str(self.tmp),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_DATA_HOME": str(self.home / ".local" / "share"),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "XDG_STATE_HOME": str(self.home / ".local" / "state"),
        }


@dataclass(frozen=True, slots=True)
class Workspace(ProgramDirectories):
    """The directories of one program. Only the user of the worker can enter them.

    Attributes:
        root: the directory with all others.
        lock: the locked file `lock` in the root. A workspace is abandoned when no process has this lock.
    """

    lock: io.FileIO = field(repr=False, compare=False)

    @classmethod
    def create(cls) -> Self:
        """Create new, empty directories, and take their lock.

        Raises:
            WorkspaceError: the directories cannot be created.
        """
        lock: io.FileIO | None = None
        try:
            while lock is None:  # another process may take the new directory for an abandoned one, and remove it
                root = Path(tempfile.mkdtemp(prefix=PREFIX))
                lock = take_lock(root)
            workspace = cls(root, lock)
            for directory in (workspace.work, workspace.home, workspace.tmp, workspace.gateway_directory):
                directory.mkdir(mode=0o700)
        except OSError as error:
            if lock is not None:
                cls(root, lock).remove()
            raise WorkspaceError(
                f"the directories of a program cannot be created: {_describe(error)}; make room there, or set TMPDIR "
                "to another directory."
            ) from error
        return workspace

    @property
    def lock_fd(self) -> int:
        """The file descriptor of the lock. A process that inherits it holds the lock, too."""
        return self.lock.fileno()

    @property
    def mark(self) -> Mapping[str, str]:
        """The variable by which the processes of the program are recognised."""
        return {VARIABLE: str(self.root)}

    def renew_home(self) -> None:
        """Empty the home and the directory for temporary files, so that no setting of the program is left there.

        Raises:
            WorkspaceError: something cannot be removed.
        """
        try:
            for directory in (self.home, self.tmp):
                remove_child(directory)
                directory.mkdir(mode=0o700)
        except OSError as error:
            raise WorkspaceError(f"the home of a program cannot be emptied: {_describe(error)}.") from error

    def remove(self) -> None:
        """Remove all directories, also those that the program made unreadable. Do nothing if they are gone.

        Symbolic links are removed, not followed. The lock is released in any case.

        Raises:
            WorkspaceError: something cannot be removed, such as a file of another user. The rest has been removed.
        """
        try:
            remove_root(self.root)
        except OSError as error:
            raise WorkspaceError(
                f"the files of a program cannot be removed: {_describe(error)}; remove {self.root} as the user who "
                "owns them."
            ) from error
        finally:
            self.lock.close()


def take_lock(root: Path) -> io.FileIO | None:
    """Take the lock of a workspace. Return None if another process has it, or if the workspace is gone.

    A process takes this lock when it creates a workspace, and before it removes an abandoned one.
    """
    try:
        descriptor = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    lock = io.FileIO(descriptor, "r+")
    is_taken = False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_taken = os.fstat(descriptor).st_nlink > 0  # if not, the process that had the lock has removed the workspace
    except BlockingIOError:
        pass
    finally:
        if not is_taken:
            lock.close()
    return lock if is_taken else None


def copy_tree(source: Path, target: Path) -> None:
    """Copy what is in a directory into another one, with modes, times, and symbolic links as links.

    What the source has replaces what the target has under the same name. The only exception is a directory in the place
    of a directory: it keeps its other files. Nothing is ever written through a link of the target.

    Raises:
        WorkspaceError: the source is no directory, it has something else than files, directories and links, or it
            cannot be copied. What was copied before stays.
    """
    with named_errors(f"the directory {source} cannot be copied"):
        source_directory = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with closing(source_directory), closing(make_child(target)) as target_directory:
            _copy_directory(source_directory, target_directory, source, os.fstat(target_directory))


def write_files(files: Mapping[str, str], target: Path) -> None:
    """Write text files below a directory; the names are relative paths. Never write through a symbolic link.

    A file replaces what has its name, and directories that are missing are made.

    Raises:
        WorkspaceError: a name leads out of the directory, or a file cannot be written.
    """
    for name, text in files.items():
        *parents, last = _checked_parts(name)
        with named_errors(f"the file {show_value(name)} cannot be written"):
            data = text.encode()
            with made_directory(target, parents) as directory, new_file(last, directory) as file:
                file.write(data)


def file_name_problem(name: str) -> str | None:
    """Return why a name is not that of a file below a directory; None if it is."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or name.endswith("/") or "\0" in name:
        return (
            f"the file {show_value(name)} cannot be written: expected a path below the work directory, such as "
            "src/main.py, without `..`"
        )
    return None


def _checked_parts(name: str) -> Sequence[str]:
    if (problem := file_name_problem(name)) is not None:
        raise WorkspaceError(f"{problem}.")
    return PurePosixPath(name).parts


def _copy_directory(source: int, target: int, place: Path, top: os.stat_result, level: int = 0) -> None:
    """Copy what is in a directory. `place` is the path of the source, for errors; `top` is the target of all."""
    if os.path.samestat(os.fstat(source), top):
        raise WorkspaceError(f"{place} cannot be copied into itself; choose a source that does not contain it.")
    if level > _MAX_LEVELS:
        raise WorkspaceError(f"{place} cannot be copied: it is more than {_MAX_LEVELS} levels deep.")
    for name in sorted(os.listdir(source)):
        with named_errors(f"{place / name} cannot be copied"):
            found = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                source_child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
                with closing(source_child), closing(make_child(name, target)) as target_child:
                    _copy_directory(source_child, target_child, place / name, top, level + 1)
                    os.fchmod(target_child, found.st_mode & _COPIED_MODE)
            elif stat.S_ISLNK(found.st_mode):
                link = os.readlink(name, dir_fd=source)
                remove_child(name, target)
                os.symlink(link, name, dir_fd=target)
            else:
                _copy_file(name, source, target, place / name)


def _copy_file(name: str, source: int, target: int, place: Path) -> None:
    original = open_regular_file(name, source)
    if original is None:
        raise WorkspaceError(
            f"{place} cannot be copied, because it is a socket, a device or a pipe; a template may contain only files, "
            "directories and symbolic links."
        )
    with original:
        found = os.fstat(original.fileno())
        with new_file(name, target) as copy:
            shutil.copyfileobj(original, copy, _BLOCK_BYTES)
            copy.flush()  # otherwise a later write would change the time
            os.fchmod(copy.fileno(), found.st_mode & _COPIED_MODE)
            os.utime(copy.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))


@contextmanager
def named_errors(what: str) -> Iterator[None]:
    """Raise WorkspaceError in the place of an error of the system. `what` says what cannot be done."""
    try:
        yield
    except (OSError, UnicodeEncodeError) as error:
        raise WorkspaceError(f"{what}: {_describe(error)}.") from error


def _describe(error: OSError | UnicodeEncodeError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "it contains half of a character (a lone surrogate)"
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"
