"""Reads image files that references name, but only below one directory and without following symbolic links.

A reference names a run and a file, not a path. The file may be directly in the server's directory or in the run's
directory, or in `assets/images` there. The run's directory is searched up to a certain depth. So the server's directory
can be a run's image directory, a run's directory, the directory of all runs, or the one above. Each part of a path is
opened relative to the descriptor of the part before, so a new link cannot lead elsewhere. If several files match, the
hash shows whether the right one was read.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator

from .errors import InvalidImageRef, MaterialisationFailed

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SUBDIRECTORY_FLAGS = _DIRECTORY_FLAGS | os.O_NOFOLLOW
# Non-blocking, because opening a named pipe would block.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_IMAGES_PATH = ("assets", "images")
_MAX_DEPTH, _MAX_VISITED_DIRECTORIES = 3, 1000
"""The limits of the search for a run's directory: the number of levels, and the number of visited directories."""

PathParts = tuple[str, ...]


class ImageFiles:
    """The image files below one directory. It is thread-safe.

    Attributes:
        directory: the path of the directory, without symbolic links.
    """

    def __init__(self, directory: str) -> None:
        self.directory = os.path.realpath(directory)
        self._run_paths: dict[str, PathParts] = {}

    def read(self, run_id: str, name: str, max_bytes: int) -> bytes:
        """Return the bytes of a file of a run.

        Raises:
            InvalidImageRef: the file is missing, too large, or not a regular file below the directory.
            MaterialisationFailed: the file system failed.
        """
        if {run_id, name} & {".", ".."}:
            raise InvalidImageRef("the name of a run or a file must not be '.' or '..'")
        try:
            root_fd = os.open(self.directory, _DIRECTORY_FLAGS)
        except OSError as error:
            raise MaterialisationFailed(f"this server cannot open its image directory: {_error_text(error)}") from error
        try:
            for run_path in self._candidate_paths(root_fd, run_id):
                for path_parts in (run_path, (*run_path, *_IMAGES_PATH)):
                    data = _read_file(root_fd, path_parts, name, max_bytes)
                    if data is not None:
                        return data
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
                raise InvalidImageRef(
                    f"the path of {name[:100]!r} has a symbolic link or is too long, which is refused"
                ) from error
            raise MaterialisationFailed(f"{name[:100]!r} cannot be read: {_error_text(error)}") from error
        finally:
            os.close(root_fd)
        raise InvalidImageRef(f"this server finds no file {name[:100]!r} of the run {run_id[:100]!r} in its directory")

    def _candidate_paths(self, root_fd: int, run_id: str) -> Iterator[PathParts]:
        yield ()
        cached_path = self._run_paths.get(run_id)
        if cached_path is not None:
            yield cached_path
        found_path = _find_run(root_fd, run_id)
        if found_path is not None and found_path != cached_path:
            self._run_paths[run_id] = found_path
            yield found_path


def _find_run(root_fd: int, run_id: str) -> PathParts | None:
    """Return the path of the nearest directory with this name; None if there is none within the search limits."""
    pending: deque[PathParts] = deque([()])
    for _ in range(_MAX_VISITED_DIRECTORIES):
        if not pending:
            return None
        path_parts = pending.popleft()
        try:
            fd = _open_directory(root_fd, path_parts)
        except OSError:
            continue  # the directory was removed, or this server may not read it
        try:
            with os.scandir(fd) as entries:
                inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            if run_id in inner or _is_link(fd, run_id):
                return (*path_parts, run_id)
        finally:
            os.close(fd)
        if len(path_parts) + 1 < _MAX_DEPTH:
            pending.extend((*path_parts, name) for name in inner)
    return None


def _is_link(directory_fd: int, name: str) -> bool:
    # A link with the run's name ends the search, and reading it fails later. A deeper directory with this name would be
    # another run.
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _open_directory(root_fd: int, path_parts: PathParts) -> int:
    fd = os.dup(root_fd)
    try:
        for part in path_parts:
            inner_fd = os.open(part, _SUBDIRECTORY_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = inner_fd
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read_file(root_fd: int, path_parts: PathParts, name: str, max_bytes: int) -> bytes | None:
    try:
        directory_fd = _open_directory(root_fd, path_parts)
        try:
            fd = os.open(name, _FILE_FLAGS, dir_fd=directory_fd)
        finally:
            os.close(directory_fd)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidImageRef(f"{name[:100]!r} is not a regular file")
        if status.st_size <= max_bytes:
            with open(fd, "rb", closefd=False) as file:
                # Read one byte more than allowed, to notice that the file has grown.
                data = file.read(max_bytes + 1)
            if len(data) <= max_bytes:
                return data
        raise InvalidImageRef(f"{name[:100]!r} has more than {max_bytes} bytes")
    finally:
        os.close(fd)


def _error_text(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
