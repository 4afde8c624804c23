"""Leases in files. Only one process can create a lease file, and a heartbeat shows that the process lives.

A process takes a lease when it creates the file `<name>.<epoch>` exclusively. The epoch is one more than the highest
existing epoch, so acks under the previous epoch are refused. The process releases the lease when it renames the file to
`<name>.<epoch>.free`. Every lease file is a hard link to the heartbeat file of its holder. In that file, a thread
raises a counter, so one write renews all leases of the holder. A lease has expired when the counter has not changed for
the lease time. Each reader measures this time with its own monotonic clock.

The heartbeat file is complete before a lease is linked to it, so a full disk leaves no damaged lease. If a lease file
contains no valid heartbeat, it was damaged later, for example by a power loss. A holder that lives soon writes its file
again. So a damaged lease, too, has expired when its file has not changed for the lease time.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from transports.files.directory import list_file_names, new_random_id

_HEARTBEAT_STRUCT = struct.Struct("<16sQd")
_HOLDER_NAME_PATTERN = re.compile(r"[0-9a-f]{16}")
_HEARTBEATS_PER_LEASE_TIME = 5
_LEASE_NAME_PATTERN = re.compile(r"(lease|[0-9a-f]{16}\.[0-9]+)\.([0-9]+)(\.free)?")


class _Heartbeat(NamedTuple):
    """The contents of a heartbeat file."""

    holder: str
    counter: int
    lease_time: float

    def pack(self) -> bytes:
        return _HEARTBEAT_STRUCT.pack(self.holder.encode(), self.counter, self.lease_time)

    @classmethod
    def unpack(cls, data: bytes) -> Self | None:
        """Return the heartbeat in the contents of a file; None if they are damaged."""
        if len(data) != _HEARTBEAT_STRUCT.size:
            return None
        name, counter, lease_time = _HEARTBEAT_STRUCT.unpack(data)
        holder = name.decode("ascii", "replace")
        if not _HOLDER_NAME_PATTERN.fullmatch(holder) or not 0 <= lease_time < math.inf:
            return None
        return cls(holder, counter, lease_time)


class LeaseHolder:
    """Sends the heartbeat of this consumer, from its first lease until it is closed."""

    def __init__(self, directory: Path, lease_time: float) -> None:
        self.name = new_random_id()
        self._path = directory / self.name
        self._lease_time = lease_time
        self._counter = 0
        self._fd = -1
        self._fd_lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def create_lease(self, lease_file: Path) -> None:
        """Create a lease file; start the heartbeat if needed. Raises FileExistsError if the lease file exists."""
        if self._thread is None:
            self._start_heartbeat()
        try:
            os.link(self._path, lease_file)
        except FileNotFoundError:
            # Another process found this holder expired and removed its heartbeat file. The earlier leases are lost.
            self._start_heartbeat()
            os.link(self._path, lease_file)

    def close(self) -> None:
        """End the heartbeat, and remove the heartbeat file."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            os.close(self._fd)
            self._path.unlink(missing_ok=True)

    def _start_heartbeat(self) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            self._write_heartbeat(fd)
        except OSError:
            os.close(fd)
            self._path.unlink()
            raise
        with self._fd_lock:
            previous_fd, self._fd = self._fd, fd
        if previous_fd >= 0:
            os.close(previous_fd)
        if self._thread is None:
            # A thread sends the heartbeat, so that a busy event loop does not lose its leases.
            self._thread = threading.Thread(target=self._keep_heartbeat, name=f"heartbeat-{self.name}", daemon=True)
            self._thread.start()

    def _keep_heartbeat(self) -> None:
        while not self._stop.wait(self._lease_time / _HEARTBEATS_PER_LEASE_TIME):
            # Ignore errors: if the disk fails for the whole lease time, the next ack reports that the lease is lost.
            # The lock keeps the file open during the write. The number of a closed file may belong to another file.
            with self._fd_lock, contextlib.suppress(OSError):
                self._write_heartbeat(self._fd)
                os.fsync(self._fd)

    def _write_heartbeat(self, fd: int) -> None:
        self._counter += 1
        _write_whole(fd, _Heartbeat(self.name, self._counter, self._lease_time))


def expire_holder_leases(holders_dir: Path, holder: str) -> None:
    """Make the leases of a dead holder expire. Other processes notice it at their next check.

    Raises ValueError if `holder` is not the name of a holder.
    """
    if not _HOLDER_NAME_PATTERN.fullmatch(holder):
        raise ValueError(f"{holder!r} is not the name of a holder; use the value of `holder` of a queue handle")
    # Set the lease time in the heartbeat file to zero. All leases of the holder are links to this file.
    with contextlib.suppress(FileNotFoundError), (holders_dir / holder).open("r+b") as file:
        heartbeat = _Heartbeat.unpack(file.read(_HEARTBEAT_STRUCT.size))
        _write_whole(file.fileno(), _Heartbeat(holder, 0 if heartbeat is None else heartbeat.counter, 0.0))


def _write_whole(fd: int, heartbeat: _Heartbeat) -> None:
    data = heartbeat.pack()
    if os.pwrite(fd, data, 0) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if os.fstat(fd).st_size > len(data):
        os.ftruncate(fd, len(data))


class HeartbeatWatcher:
    """Remembers the last heartbeat that this process has read of each other holder, and when it changed.

    `lease_time` is used for a damaged lease, because the lease time in its file cannot be read.
    """

    def __init__(self, holders_dir: Path, lease_time: float) -> None:
        self._holders_dir = holders_dir
        self._lease_time = lease_time
        self._last_changes: dict[str, tuple[bytes, float]] = {}

    def has_expired(self, lease_file: Path) -> bool:
        """Whether the holder of this lease has sent no heartbeat for the lease time.

        Call this repeatedly, because it compares the heartbeat with the one of earlier calls. It also removes the
        heartbeat file of an expired holder.
        """
        now = time.monotonic()
        try:
            with lease_file.open("rb") as file:
                data = file.read(_HEARTBEAT_STRUCT.size + 1)
        except FileNotFoundError:
            return False  # another process removed the lease file just now
        heartbeat = _Heartbeat.unpack(data)
        if heartbeat is None:
            name, lease_time, state = str(lease_file), self._lease_time, data
        else:
            name, lease_time, state = heartbeat.holder, heartbeat.lease_time, heartbeat.counter.to_bytes(8)
        last_state, changed_at = self._last_changes.get(name, (state, now))
        if state != last_state or now - changed_at < lease_time:
            self._last_changes[name] = (state, changed_at if state == last_state else now)
            return False
        if heartbeat is not None:
            (self._holders_dir / name).unlink(missing_ok=True)
        return True


@dataclass(frozen=True, slots=True)
class LeaseState:
    """The state of one lease, according to the file names in a directory."""

    epoch: int
    """The highest epoch of the lease."""
    released: bool
    """Whether the holder of that epoch has released the lease."""

    def is_free(self, path: Path, heartbeats: HeartbeatWatcher) -> bool:
        """Whether another process may take the lease. `path` is its lease file."""
        return self.released or heartbeats.has_expired(path)


@dataclass(frozen=True, slots=True)
class FileLease:
    """A lease that this process has taken."""

    directory: Path
    """The directory of the lease file."""
    lease_name: str
    """The name of the lease: the start of the name of its file."""
    epoch: int
    """The fencing epoch of the lease."""
    _path_prefix: str = field(init=False)

    def __post_init__(self) -> None:
        # A string instead of a Path: every ack checks the lease, and pathlib is slow.
        object.__setattr__(self, "_path_prefix", f"{self.directory}/{self.lease_name}.")

    def exists(self) -> bool:
        """Whether the lease file exists. The next holder removes it in `take_lease`, before it reads any file."""
        return os.access(f"{self._path_prefix}{self.epoch}", os.F_OK)

    def is_current(self) -> bool:
        """Whether no other consumer has the lease. This also checks the next epoch.

        `claim_record` creates the file of the next epoch, but does not remove the file of this one.
        """
        return self.exists() and not os.access(f"{self._path_prefix}{self.epoch + 1}", os.F_OK)

    def release(self) -> None:
        """Release the lease, so that another process can take it at once.

        The file of this epoch stays under another name, so that the next epoch is higher.
        """
        with contextlib.suppress(FileNotFoundError):
            lease_file = lease_path(self.directory, self.lease_name, self.epoch)
            lease_file.rename(released_path(self.directory, self.lease_name, self.epoch))

    def remove(self) -> None:
        """Remove the files of all epochs. Call this when the record is acked."""
        for epoch in range(self.epoch + 1):
            lease_path(self.directory, self.lease_name, epoch).unlink(missing_ok=True)
            released_path(self.directory, self.lease_name, epoch).unlink(missing_ok=True)


def lease_path(directory: Path, lease_name: str, epoch: int) -> Path:
    """Return the path of a lease file."""
    return directory / f"{lease_name}.{epoch}"


def released_path(directory: Path, lease_name: str, epoch: int) -> Path:
    """Return the path that a lease file has after its release."""
    return directory / f"{lease_name}.{epoch}.free"


def read_lease_states(directory: Path) -> dict[str, LeaseState]:
    """Return the state of each lease in a directory, by the name of the lease."""
    states: dict[str, LeaseState] = {}
    for lease_name, state in _iter_leases(directory):
        if lease_name not in states or states[lease_name].epoch < state.epoch:
            states[lease_name] = state
    return states


def take_lease(directory: Path, lease_name: str, epoch: int, holder: LeaseHolder) -> FileLease | None:
    """Take the lease with this epoch, and remove earlier epochs. Return it, or None if another process has taken it."""
    lease = FileLease(directory, lease_name, epoch)
    try:
        holder.create_lease(lease_path(directory, lease_name, epoch))
    except FileExistsError:
        return None
    other_epochs = sorted(
        state.epoch for name, state in _iter_leases(directory) if name == lease_name and state.epoch != epoch
    )
    if other_epochs and other_epochs[-1] > epoch:
        # The epoch was free when the caller checked. Since then, other processes have taken the lease.
        lease.remove()
        return None
    for old_epoch in other_epochs:
        lease_path(directory, lease_name, old_epoch).unlink(missing_ok=True)
        released_path(directory, lease_name, old_epoch).unlink(missing_ok=True)
    return lease


def claim_record(directory: Path, lease_name: str, epoch: int, holder: LeaseHolder) -> FileLease | None:
    """Claim a single record with this epoch. Return the lease, or None if another process has claimed the record.

    In contrast to `take_lease`, this does not list the directory, because there may be very many records. The files of
    earlier epochs stay until `remove`. So a process that tries an old epoch finds the file of that epoch.
    """
    lease = FileLease(directory, lease_name, epoch)
    try:
        holder.create_lease(lease_path(directory, lease_name, epoch))
    except FileExistsError:
        return None
    if released_path(directory, lease_name, epoch).exists():
        lease_path(directory, lease_name, epoch).unlink(missing_ok=True)
        return None
    return lease


def _iter_leases(directory: Path) -> Iterator[tuple[str, LeaseState]]:
    for file_name in list_file_names(directory):
        if match := _LEASE_NAME_PATTERN.fullmatch(file_name):
            yield match[1], LeaseState(int(match[2]), released=match[3] is not None)
