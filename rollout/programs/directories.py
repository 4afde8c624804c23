"""Opens, makes and removes directories that a program may have changed, and never follows a symbolic link.

A program may put a link in the place of a directory, even while this code runs. So each step begins at an open
directory, names one entry of it, and refuses links.
"""

import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

LOCK_NAME = "lock"
"""The name of the lock in a workspace."""
_OPEN_ANY_MODE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_TRIES = 10
_MAX_OPEN_LEVELS = 16
"""The limit for the levels of a tree that are open at the same time while it is removed."""


def open_child(name: str | Path, parent: int | None = None) -> int:
    """Open a directory for reading, and return its file descriptor. Its owner gets access first, if it had none.

    Args:
        name: the name of the directory in its parent; a path, if there is no parent.
        parent: the file descriptor of the parent.

    Raises:
        NotADirectoryError: something else has this name, such as a symbolic link.
        OSError: the directory cannot be opened.
    """
    directory = os.open(name, _OPEN_ANY_MODE, dir_fd=parent)
    try:
        mode = stat.S_IMODE(os.fstat(directory).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            with suppress(PermissionError):  # the directory of another user, who may let this user read it
                os.chmod(f"/proc/self/fd/{directory}", mode | stat.S_IRWXU)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)


def make_child(name: str | Path, parent: int | None = None) -> int:
    """Open a directory as `open_child` does. Make it if it is missing, also in the place of a file or a link."""
    for _ in range(_MAX_TRIES):
        try:
            return open_child(name, parent)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
        except NotADirectoryError:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
    return open_child(name, parent)


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close a file descriptor at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def made_directory(path: Path, parts: Sequence[str]) -> Iterator[int]:
    """Open the directory that these parts name below a path, and make what is missing, as `make_child` does."""
    directory = make_child(path)
    try:
        for part in parts:
            child = make_child(part, directory)
            os.close(directory)
            directory = child
        yield directory
    finally:
        os.close(directory)


@contextmanager
def new_file(name: str, parent: int) -> Iterator[BinaryIO]:
    """Make a file in the place of whatever has its name. A hard link or a symbolic link keeps what it leads to."""
    remove_child(name, parent)
    descriptor = os.open(
        name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=parent
    )
    with open(descriptor, "wb") as file:
        yield file
        file.flush()


def open_regular_file(name: str, parent: int) -> BinaryIO | None:
    """Open a file for reading. Return None if it is a link, a directory, a socket, a device or a pipe.

    Raises:
        OSError: it cannot be opened.
    """
    if not stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        return None
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):  # a program may have replaced it just now
        return open(descriptor, "rb")
    os.close(descriptor)
    return None


def remove_child(name: str | Path, parent: int | None = None) -> None:
    """Remove a file, a link, or a directory with all that is in it. Do nothing if it is gone.

    Directories without access, very deep trees, and entries that vanish meanwhile are no problem.

    Raises:
        OSError: something cannot be removed; `filename` says what. Everything else has been removed.
    """
    tries = 0
    while tries < _MAX_TRIES:
        removal = _Removal()
        removal.remove(str(name), parent)
        if removal.failure is None and not removal.left:
            return
        tries += not removal.moved
    raise removal.failure or OSError(0, "other processes write into it all the time", str(name))


def remove_root(root: str | Path) -> None:
    """Remove a workspace, and its lock as the last thing. Do nothing if it is gone.

    While the lock is there, no other process takes the workspace for an abandoned one.

    Raises:
        OSError: something cannot be removed, as in `remove_child`. The lock has been removed, too.
    """
    failure: OSError | None = None
    try:
        with closing(open_child(root)) as directory:
            for name in os.listdir(directory):
                if name != LOCK_NAME:
                    try:
                        remove_child(name, directory)
                    except OSError as error:
                        failure = failure or OSError(error.errno, error.strerror, f"{root}/{error.filename}")
    except (FileNotFoundError, NotADirectoryError):
        pass
    try:
        remove_child(root)
    except OSError as error:
        raise failure or error from None


class _Removal:
    """One pass over a tree. It moves directories at a deep level to the top, where the next pass finds them.

    Attributes:
        failure: the first thing that could not be removed.
        moved: whether directories were moved to the top.
        left: whether another pass is needed.
    """

    def __init__(self) -> None:
        self.failure: OSError | None = None
        self.moved = False
        self.left = False
        self._top: int | None = None

    def remove(self, name: str, parent: int | None, place: str = "", level: int = 0) -> None:
        try:
            if not self._unlinked(name, parent):
                self._remove_directory(name, parent, place or name, level)
        except FileNotFoundError:
            pass
        except NotADirectoryError:  # it was a directory just now
            self.left = True
        except OSError as error:
            if self.failure is None and not self.moved:
                self.failure = OSError(error.errno, error.strerror, place or name)
            self.left = True

    @staticmethod
    def _unlinked(name: str, parent: int | None) -> bool:
        try:
            os.unlink(name, dir_fd=parent)
        except IsADirectoryError:
            return False
        return True

    def _remove_directory(self, name: str, parent: int | None, place: str, level: int) -> None:
        directory = open_child(name, parent)
        try:
            if level == _MAX_OPEN_LEVELS:
                assert self._top is not None
                os.rename(name, f"moved-{secrets.token_hex(16)}", src_dir_fd=parent, dst_dir_fd=self._top)
                self.moved = self.left = True
                return
            if level == 0:
                self._top = directory
            with os.scandir(directory) as entries:
                for entry in entries:
                    self.remove(entry.name, directory, f"{place}/{entry.name}", level + 1)
        finally:
            os.close(directory)
        os.rmdir(name, dir_fd=parent)
