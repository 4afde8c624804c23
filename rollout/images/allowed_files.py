"""Reads files that messages name, but only from allowed directories.

A path must be in an allowed directory as written, and also after all its symbolic links are resolved. Somebody could
create a link after this check. So each directory of the path is opened from the descriptor of the one before, and links
are not followed.
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
from rollout.images.policy import describe_too_many_bytes

_OPEN_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Non-blocking, because opening a named pipe would wait for a writer.
_OPEN_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class AllowedDirectory:
    """A directory from which messages may name image files.

    Attributes:
        written_path: the path as it was given.
        real_path: the absolute path without symbolic links.
    """

    written_path: str
    real_path: str

    @classmethod
    def from_path(cls, directory: Path) -> Self:
        """Return the directory with its links resolved now, so that later changes of a link have no effect."""
        return cls(str(directory), os.path.realpath(directory))

    def contains_as_written(self, path: str) -> bool:
        """Whether the path begins with this directory's path, as it was given or as it was resolved."""
        return path.startswith((self.written_path + "/", self.real_path + "/"))

    def is_direct_child(self, path: str) -> bool:
        """Whether the path, as written, is directly in this directory."""
        return path.rpartition("/")[0] in (self.written_path, self.real_path)

    def relative_path(self, real_path: str) -> str | None:
        """Return the part of a resolved path below this directory; None if the path is outside."""
        return real_path[len(self.real_path) + 1 :] if real_path.startswith(self.real_path + "/") else None


def file_url_to_path(url: str) -> str:
    """Return the absolute path that a `file://` URL names.

    Raises:
        ImageError: the URL has a host, a query, a fragment, or a component `.` or `..`, or cannot be a path.
    """
    url_path = url.removeprefix("file://")
    if not url_path.startswith("/"):
        raise ImageError("a file:// URL must have no host and an absolute path: file:///directory/name")
    if "?" in url_path or "#" in url_path:
        raise ImageError("a file:// URL must not have a query or a fragment ('?' or '#')")
    try:
        path = unquote(url_path, errors="strict")
    except UnicodeDecodeError:
        raise ImageError("the file:// URL is not percent-encoded UTF-8") from None
    if "\0" in path:
        raise ImageError("the file:// URL contains a NUL byte")
    if any(component in ("..", ".") for component in path.split("/")):
        raise ImageError("the file:// URL must not contain the components '.' and '..'")
    return path


def read_allowed_file(path: str, allowed: Sequence[AllowedDirectory], max_bytes: int) -> bytes:
    """Return the bytes of the file at this path.

    Raises:
        ImageError: the file is outside the allowed directories, missing, not a regular file, or larger than
            `max_bytes`.
    """
    if not any(directory.contains_as_written(path) for directory in allowed):
        raise _outside_error(path)
    try:
        real_path = os.path.realpath(path, strict=True)
        for root in allowed:
            relative = root.relative_path(real_path)
            if relative is not None:
                return _read_below(root.real_path, relative, max_bytes)
    except OSError as error:
        raise ImageError(f"{_quote_path(path)} cannot be read: {_describe_os_error(error)}") from error
    raise _outside_error(path)


def read_regular_file(directory_fd: int, name: str, max_bytes: int) -> bytes:
    """Return the bytes of a regular file in an open directory, without following a link.

    Raises:
        ImageError: the file is not a regular file, or is larger than `max_bytes`.
        OSError: the file cannot be opened or read.
    """
    fd = os.open(name, _OPEN_FILE_FLAGS, dir_fd=directory_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{_quote_path(name)} is not a regular file")
        if status.st_size <= max_bytes:
            # Read one byte more than allowed, to notice that the file has grown.
            data = _read_up_to(fd, max_bytes + 1, status.st_size + 1)
            if len(data) <= max_bytes:
                return data
        found = max(status.st_size, max_bytes + 1)
        raise ImageError(f"{_quote_path(name)} has {describe_too_many_bytes(found, max_bytes)}")
    finally:
        os.close(fd)


def _read_below(directory_path: str, relative_path: str, max_bytes: int) -> bytes:
    *directories, name = relative_path.split("/")
    fd = os.open(directory_path, _OPEN_DIRECTORY_FLAGS)
    try:
        for directory in directories:
            inner_fd = os.open(directory, _OPEN_DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = inner_fd
        return read_regular_file(fd, name, max_bytes)
    finally:
        os.close(fd)


def _read_up_to(fd: int, limit: int, expected_bytes: int) -> bytes:
    chunks: list[bytes] = []
    total = 0
    while total < limit and (chunk := os.read(fd, min(max(expected_bytes - total, 65_536), limit - total))):
        chunks.append(chunk)
        total += len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _outside_error(path: str) -> ImageError:
    return ImageError(
        f"{_quote_path(path)} is outside the run's image directory and the directories in images.allow; add its "
        "directory to images.allow, or give the image as a data: URI"
    )


def _describe_os_error(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "a part of the path is a symbolic link, or is a file but should be a directory"
    return os.strerror(error.errno) if error.errno else str(error)


def _quote_path(path: str) -> str:
    return repr(path if len(path) <= 200 else path[:197] + "...")
