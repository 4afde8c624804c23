"""Reading an image file by the name that a reference gives it, below one directory and through no link.

A reference names a run and a file, never a path. The file lies in the server's directory itself, or in that of its run,
in either case right there or in `assets/images`. The run's directory is looked for some levels deep, so that a server
may be started with the images of a run, with the run, with all runs, or with what they are a part of. Each step is
opened from the descriptor of the one before, so that nothing put in place meanwhile can lead elsewhere. Which file is
found matters to nobody: it is believed for its bytes.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator

from .errors import InvalidImageRef, MaterialisationFailed

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STEP = _DIRECTORY | os.O_NOFOLLOW
# Non-blocking, so that a named pipe is noticed instead of waited for.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_IMAGES = ("assets", "images")
_DEEPEST, _MOST_VISITED = 3, 1000
"""How far below the server's directory a run's is looked for, and in how many directories at most."""

Steps = tuple[str, ...]


class ImageFiles:
    """The images below one directory; safe to use from many threads."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._runs: dict[str, Steps] = {}

    def read(self, run_id: str, name: str, max_bytes: int) -> bytes:
        """The bytes of a file.

        Raises:
            InvalidImageRef: it is missing, too large, or not a regular file below the directory.
            MaterialisationFailed: the file system failed.
        """
        if {run_id, name} & {".", ".."}:
            raise InvalidImageRef("'.' and '..' name neither a run nor a file")
        try:
            root = os.open(self.directory, _DIRECTORY)
        except OSError as error:
            raise MaterialisationFailed(f"the directory of this server's images is gone: {_why(error)}") from error
        try:
            for place in self._places(root, run_id):
                for steps in (place, (*place, *_IMAGES)):
                    data = _read(root, steps, name, max_bytes)
                    if data is not None:
                        return data
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
                raise InvalidImageRef(f"{name[:100]!r} is not reached without a symbolic link") from error
            raise MaterialisationFailed(f"{name[:100]!r} cannot be read: {_why(error)}") from error
        finally:
            os.close(root)
        raise InvalidImageRef(f"there is no file {name[:100]!r} of the run {run_id[:100]!r} where this server may read")

    def _places(self, root: int, run_id: str) -> Iterator[Steps]:
        yield ()
        known = self._runs.get(run_id)
        if known is not None:
            yield known
        found = _find(root, run_id)
        if found is not None and found != known:
            self._runs[run_id] = found
            yield found


def _find(root: int, run_id: str) -> Steps | None:
    """The way to the nearest directory of this name, if it is not too far."""
    waiting: deque[Steps] = deque([()])
    for _ in range(_MOST_VISITED):
        if not waiting:
            return None
        steps = waiting.popleft()
        try:
            fd = _open(root, steps)
        except OSError:
            continue  # gone, or not for this server
        try:
            with os.scandir(fd) as entries:
                inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            if run_id in inner or _is_link(fd, run_id):
                return (*steps, run_id)
        finally:
            os.close(fd)
        if len(steps) + 1 < _DEEPEST:
            waiting.extend((*steps, name) for name in inner)
    return None


def _is_link(directory: int, name: str) -> bool:
    # Found, and refused when it is opened: another directory of this name deeper down is not what was meant.
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _open(root: int, steps: Steps) -> int:
    fd = os.dup(root)
    try:
        for step in steps:
            inner = os.open(step, _STEP, dir_fd=fd)
            os.close(fd)
            fd = inner
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read(root: int, steps: Steps, name: str, max_bytes: int) -> bytes | None:
    try:
        directory = _open(root, steps)
        try:
            fd = os.open(name, _FILE, dir_fd=directory)
        finally:
            os.close(directory)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidImageRef(f"{name[:100]!r} is not a regular file")
        if status.st_size <= max_bytes:
            with open(fd, "rb", closefd=False) as file:
                # One byte more than there may be, so that a file that grows is noticed.
                data = file.read(max_bytes + 1)
            if len(data) <= max_bytes:
                return data
        raise InvalidImageRef(f"{name[:100]!r} has more than {max_bytes} bytes")
    finally:
        os.close(fd)


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
