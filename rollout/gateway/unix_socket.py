"""The unix socket of the gateway: only the user of the worker can connect, and a dead worker's socket is replaced."""

import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class PrivateSocket:
    """A bound unix socket, which does not listen yet.

    Attributes:
        socket: the socket.
        path: its file.
    """

    socket: socket.socket
    path: Path
    _inode: int

    @classmethod
    def bind(cls, path: Path) -> Self:
        """Bind a socket. Raises OSError, also if another process listens at the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead_socket(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.setblocking(False)
            bound.bind(str(path))
            # Nobody can connect before the socket listens, so the mode is right in time.
            path.chmod(0o600)
            return cls(bound, path, path.stat().st_ino)
        except BaseException:
            bound.close()
            raise

    def remove(self) -> None:
        """Remove the file, if it is still that of this socket."""
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            pass


def _remove_dead_socket(path: Path) -> None:
    """Remove the socket of a process that died. Raises OSError if a process listens at it."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        found = probe.connect_ex(str(path))
    if found not in (errno.ECONNREFUSED, errno.ENOENT):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink(missing_ok=True)
