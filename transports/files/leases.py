"""Leases: a file that only one process can create, and a heartbeat that shows that its holder lives.

A process takes a lease when it creates `<name>.<epoch>` exclusively, with the epoch after the highest one. That also
fences the holder of the previous epoch. It releases the lease when it renames the file to `<name>.<epoch>.free`. Every
lease file is a hard link to its holder's heartbeat file, in which a thread raises a counter. So one write renews all
leases of the holder. A lease has expired when the counter did not change for the lease time, on the reader's own
monotonic clock.

A holder's file is complete before it is linked, so a full disk leaves no damaged lease. A lease file that is not a
heartbeat was damaged later, for example by a power loss. A holder that lives soon writes its file again. So a damaged
lease has expired, too, when the file did not change for the lease time.
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
    """What is in the file of a holder."""

    holder: str
    counter: int
    lease_time: float

    def pack(self) -> bytes:
        return _HEARTBEAT_STRUCT.pack(self.holder.encode(), self.counter, self.lease_time)

    @classmethod
    def unpack(cls, data: bytes) -> Self | None:
        """Return the heartbeat in a file; None if the file is damaged."""
        if len(data) != _HEARTBEAT_STRUCT.size:
            return None
        name, counter, lease_time = _HEARTBEAT_STRUCT.unpack(data)
        holder = name.decode("ascii", "replace")
        if not _HOLDER_NAME_PATTERN.fullmatch(holder) or not 0 <= lease_time < math.inf:
            return None
        return cls(holder, counter, lease_time)


class LeaseHolder:
    """The heartbeat of this consumer, from its first lease until it is closed."""

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
        """Create a lease file. Raises FileExistsError if there is one."""
        if self._thread is None:
            self._start_heartbeat()
        try:
            os.link(self._path, lease_file)
        except FileNotFoundError:
            # Another process saw this holder expire and removed its file. Its earlier leases are lost.
            self._start_heartbeat()
            os.link(self._path, lease_file)

    def close(self) -> None:
        """End the heartbeat, and remove its file."""
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
            # A thread, because a busy event loop is not a dead consumer.
            self._thread = threading.Thread(target=self._keep_heartbeat, name=f"heartbeat-{self.name}", daemon=True)
            self._thread.start()

    def _keep_heartbeat(self) -> None:
        while not self._stop.wait(self._lease_time / _HEARTBEATS_PER_LEASE_TIME):
            # If the disk fails for longer than the lease time, the lease is lost. An error here would not help.
            # The lock keeps the file open: if it were closed, its number could become that of another file.
            with self._fd_lock, contextlib.suppress(OSError):
                self._write_heartbeat(self._fd)
                os.fsync(self._fd)

    def _write_heartbeat(self, fd: int) -> None:
        self._counter += 1
        _write_whole(fd, _Heartbeat(self.name, self._counter, self._lease_time))


def expire_holder_leases(holders_dir: Path, holder: str) -> None:
    """Expire the leases of a holder that is dead. Other processes see it at their next check."""
    if not _HOLDER_NAME_PATTERN.fullmatch(holder):
        raise ValueError(f"{holder!r} is not the name of a holder")
    # Every lease of a holder is a link to this file, and the lease time in it becomes zero.
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
    """Remembers what this process has seen of the heartbeats of other processes.

    `lease_time` is used for a damaged lease, whose own lease time cannot be read.
    """

    def __init__(self, holders_dir: Path, lease_time: float) -> None:
        self._holders_dir = holders_dir
        self._lease_time = lease_time
        self._last_changes: dict[str, tuple[bytes, float]] = {}

    def has_expired(self, lease_file: Path) -> bool:
        """Whether the holder of this lease has sent no heartbeat for the lease time.

        Call it repeatedly: it compares with what it saw before. It removes the heartbeat of a holder that has expired.
        """
        now = time.monotonic()
        try:
            with lease_file.open("rb") as file:
                data = file.read(_HEARTBEAT_STRUCT.size + 1)
        except FileNotFoundError:
            return False  # another process removed it just now
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
    """What the file names in a directory say of one lease."""

    epoch: int
    """Its highest epoch."""
    released: bool
    """Whether its holder released it."""

    def is_free(self, path: Path, heartbeats: HeartbeatWatcher) -> bool:
        """Whether another process may take the lease, whose file is `path`."""
        return self.released or heartbeats.has_expired(path)


@dataclass(frozen=True, slots=True)
class FileLease:
    """A lease that this process has taken."""

    directory: Path
    """The directory of its file."""
    lease_name: str
    """The name of what is leased."""
    epoch: int
    """Its fencing epoch."""
    _path_prefix: str = field(init=False)

    def __post_init__(self) -> None:
        # Every ack checks the lease, and pathlib is slow.
        object.__setattr__(self, "_path_prefix", f"{self.directory}/{self.lease_name}.")

    def exists(self) -> bool:
        """Whether its file exists. The next holder (`take_lease`) removes the file before it reads anything."""
        return os.access(f"{self._path_prefix}{self.epoch}", os.F_OK)

    def is_current(self) -> bool:
        """Whether no other consumer has it. `claim_record` creates the next epoch, and does not remove this one."""
        return self.exists() and not os.access(f"{self._path_prefix}{self.epoch + 1}", os.F_OK)

    def release(self) -> None:
        """Let another process take the lease at once. A file of this epoch stays, so that epochs rise."""
        with contextlib.suppress(FileNotFoundError):
            lease_file = lease_path(self.directory, self.lease_name, self.epoch)
            lease_file.rename(released_path(self.directory, self.lease_name, self.epoch))

    def remove(self) -> None:
        """Remove the files of all epochs, once the record is acked."""
        for epoch in range(self.epoch + 1):
            lease_path(self.directory, self.lease_name, epoch).unlink(missing_ok=True)
            released_path(self.directory, self.lease_name, epoch).unlink(missing_ok=True)


def lease_path(directory: Path, lease_name: str, epoch: int) -> Path:
    """Return the path of a lease file."""
    return directory / f"{lease_name}.{epoch}"


def released_path(directory: Path, lease_name: str, epoch: int) -> Path:
    """Return the path of a lease file after its release."""
    return directory / f"{lease_name}.{epoch}.free"


def read_lease_states(directory: Path) -> dict[str, LeaseState]:
    """Return the state of every lease in a directory, at its highest epoch."""
    states: dict[str, LeaseState] = {}
    for lease_name, state in _iter_leases(directory):
        if lease_name not in states or states[lease_name].epoch < state.epoch:
            states[lease_name] = state
    return states


def take_lease(directory: Path, lease_name: str, epoch: int, holder: LeaseHolder) -> FileLease | None:
    """Create the lease of that epoch and remove the earlier ones. Return None if another process was faster."""
    lease = FileLease(directory, lease_name, epoch)
    try:
        holder.create_lease(lease_path(directory, lease_name, epoch))
    except FileExistsError:
        return None
    other_epochs = sorted(
        state.epoch for name, state in _iter_leases(directory) if name == lease_name and state.epoch != epoch
    )
    if other_epochs and other_epochs[-1] > epoch:
        # This epoch was free when it was checked. Meanwhile other processes have had the lease.
        lease.remove()
        return None
    for old_epoch in other_epochs:
        lease_path(directory, lease_name, old_epoch).unlink(missing_ok=True)
        released_path(directory, lease_name, old_epoch).unlink(missing_ok=True)
    return lease


def claim_record(directory: Path, lease_name: str, epoch: int, holder: LeaseHolder) -> FileLease | None:
    """Claim a single record. Return None if another process was faster.

    It does not list the directory, as `take_lease` does, because there are very many records. Files of earlier epochs
    stay until `remove`, so a process that tries an old epoch finds its file, or the released one.
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
