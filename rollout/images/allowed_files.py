"""Reading a file that a message names, without ever leaving the directories that it may name.

A path must lie in an allowed directory as written and after every symbolic link in it was followed. Because a link can
be put in place between that check and the opening, the file is then opened step by step from the directory's own
descriptor, following no link at all.
"""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from rollout.images.errors import ImageError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Non-blocking, so that a named pipe is noticed instead of waited for.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Root:
    """An allowed directory, as it was given and as it is after following links."""

    given: str
    real: str

    @classmethod
    def at(cls, directory: Path) -> Self:
        """The directory as it is now; a link that is changed later does not move it."""
        return cls(str(directory), os.path.realpath(directory))

    def contains_as_written(self, path: str) -> bool:
        """Whether the path begins with this directory, under either of its names."""
        return path.startswith((self.given + "/", self.real + "/"))

    def is_direct_child(self, path: str) -> bool:
        """Whether the path, as written, is a file right in this directory."""
        return path.rpartition("/")[0] in (self.given, self.real)

    def relative(self, real_path: str) -> str | None:
        """The part of a path without links that lies below this directory."""
        return real_path[len(self.real) + 1 :] if real_path.startswith(self.real + "/") else None


def path_of_file_url(url: str) -> str:
    """The absolute path that a `file://` URL names.

    Raises:
        ImageError: it has a host, a query or a fragment, steps upwards, or cannot be a path.
    """
    rest = url.removeprefix("file://")
    if not rest.startswith("/"):
        raise ImageError("a file:// URL must have no host and an absolute path: file:///directory/name")
    if "?" in rest or "#" in rest:
        raise ImageError("a file:// URL must have neither query nor fragment")
    try:
        path = unquote(rest, errors="strict")
    except UnicodeDecodeError:
        raise ImageError("the file:// URL is not percent-encoded UTF-8") from None
    if "\0" in path:
        raise ImageError("the file:// URL has a NUL byte in it")
    if any(step in ("..", ".") for step in path.split("/")):
        raise ImageError("the file:// URL steps through '.' or '..'")
    return path


def read_contained(path: str, roots: Sequence[Root], max_bytes: int) -> bytes:
    """The bytes of the file at this path.

    Raises:
        ImageError: it is outside the allowed directories, missing, not a regular file, or larger than `max_bytes`.
    """
    if not any(root.contains_as_written(path) for root in roots):
        raise _outside(path)
    try:
        real = os.path.realpath(path, strict=True)
        for root in roots:
            relative = root.relative(real)
            if relative is not None:
                return _read_below(root.real, relative, max_bytes)
    except OSError as error:
        raise ImageError(f"{_shown(path)} cannot be read: {_why(error)}") from error
    raise _outside(path)


def read_regular(directory_fd: int, name: str, max_bytes: int) -> bytes:
    """The bytes of a regular file in an open directory, following no link.

    Raises:
        ImageError: it is not a regular file, or larger than `max_bytes`.
        OSError: it cannot be opened or read.
    """
    fd = os.open(name, _FILE, dir_fd=directory_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{_shown(name)} is not a regular file")
        if status.st_size <= max_bytes:
            # One byte more than there should be, so that a file that grows is noticed.
            data = _read_up_to(fd, max_bytes + 1, status.st_size + 1)
            if len(data) <= max_bytes:
                return data
        raise ImageError(f"{_shown(name)} has more than max_bytes {max_bytes}")
    finally:
        os.close(fd)


def _read_below(root: str, relative: str, max_bytes: int) -> bytes:
    *directories, name = relative.split("/")
    fd = os.open(root, _DIRECTORY)
    try:
        for directory in directories:
            inner = os.open(directory, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = inner
        return read_regular(fd, name, max_bytes)
    finally:
        os.close(fd)


def _read_up_to(fd: int, limit: int, expected: int) -> bytes:
    chunks: list[bytes] = []
    total = 0
    while total < limit and (chunk := os.read(fd, min(max(expected - total, 65_536), limit - total))):
        chunks.append(chunk)
        total += len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _outside(path: str) -> ImageError:
    return ImageError(
        f"{_shown(path)} is outside the run's image directory and images.allow; add its directory there, or give the"
        " image as a data: URI"
    )


def _why(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "a symbolic link or a file is where a directory or a file must be"
    return os.strerror(error.errno) if error.errno else str(error)


def _shown(path: str) -> str:
    return repr(path if len(path) <= 200 else path[:197] + "...")
