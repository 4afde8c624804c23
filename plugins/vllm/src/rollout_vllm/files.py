"""Reading an image file by the name that a reference gives it, below one directory and through no link.

A reference names a run and a file, never a path. The file lies in the directory itself, in `assets/images` below it, or
in either place of the run's own directory, so that a server may be started with the images of a run, with the run, or
with the directory of all runs.
Each step is opened from the descriptor of the one before, so that nothing put in place meanwhile can lead elsewhere.
"""

import errno
import os
import stat

from .errors import InvalidImageRef, MaterialisationFailed

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STEP = _DIRECTORY | os.O_NOFOLLOW
# Non-blocking, so that a named pipe is noticed instead of waited for.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_IMAGES = ("assets", "images")


def read_image_file(directory: str, run_id: str, name: str, max_bytes: int) -> bytes:
    """The bytes of the file.

    Raises:
        InvalidImageRef: it is missing, too large, or not a regular file below the directory.
        MaterialisationFailed: the file system failed.
    """
    if {run_id, name} & {".", ".."}:
        raise InvalidImageRef("'.' and '..' name neither a run nor a file")
    try:
        root = os.open(directory, _DIRECTORY)
    except OSError as error:
        raise MaterialisationFailed(f"the directory of this server's images is gone: {_why(error)}") from error
    try:
        for steps in ((), _IMAGES, (run_id,), (run_id, *_IMAGES)):
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


def _read(root: int, steps: tuple[str, ...], name: str, max_bytes: int) -> bytes | None:
    fd = os.dup(root)
    try:
        for step, flags in (*((step, _STEP) for step in steps), (name, _FILE)):
            inner = os.open(step, flags, dir_fd=fd)
            os.close(fd)
            fd = inner
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidImageRef(f"{name[:100]!r} is not a regular file")
        if os.fstat(fd).st_size <= max_bytes:
            with open(fd, "rb", closefd=False) as file:
                # One byte more than there may be, so that a file that grows is noticed.
                data = file.read(max_bytes + 1)
            if len(data) <= max_bytes:
                return data
        raise InvalidImageRef(f"{name[:100]!r} has more than {max_bytes} bytes")
    except FileNotFoundError:
        return None
    finally:
        os.close(fd)


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
