"""Leases: a file that only one process can create, and a heartbeat by which everyone sees that its holder lives.

To take a lease is to create `<name>.<epoch>` exclusively, with the epoch after the highest there is; that also fences
the one before. To give it back is to rename it to `<name>.<epoch>.free`. Every lease file is a link to its holder's
heartbeat, in which a thread keeps raising a counter: one write renews them all, however many there are. A lease has
lapsed when that counter was not seen to change for the lease time on the observer's own monotonic clock.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transports.files.directory import list_names, new_name

_BEAT = struct.Struct("<16sQd")
_NAME = re.compile(r"[0-9a-f]{16}")
_BEATS_PER_LEASE = 5
_LEASE = re.compile(r"(lease|[0-9a-f]{16}\.[0-9]+)\.([0-9]+)(\.free)?")


class Holder:
    """This consumer's heartbeat; beats from its first lease on, until it is closed."""

    def __init__(self, directory: Path, lease_time: float) -> None:
        self.name = new_name()
        self._path = directory / self.name
        self._lease_time = lease_time
        self._counter = 0
        self._fd = -1
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def link(self, lease: Path) -> None:
        """Create a lease file; raises FileExistsError where there is one."""
        if self._thread is None:
            self._begin()
        try:
            os.link(self._path, lease)
        except FileNotFoundError:
            # Somebody saw this holder lapse and cleaned up behind it; its leases of before are for others to take.
            os.close(self._fd)
            self._begin()
            os.link(self._path, lease)

    def close(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            os.close(self._fd)
            self._path.unlink(missing_ok=True)

    def _begin(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._beat()
        if self._thread is None:
            # A thread, because a busy event loop is not a dead one.
            self._thread = threading.Thread(target=self._keep_beating, name=f"heartbeat-{self.name}", daemon=True)
            self._thread.start()

    def _keep_beating(self) -> None:
        while not self._stop.wait(self._lease_time / _BEATS_PER_LEASE):
            # A medium that fails for a while costs the lease, if it fails for as long; nothing is gained by dying here.
            with contextlib.suppress(OSError):
                self._beat()
                os.fsync(self._fd)

    def _beat(self) -> None:
        self._counter += 1
        os.pwrite(self._fd, _BEAT.pack(self.name.encode(), self._counter, self._lease_time), 0)


def end_leases(holders: Path, name: str) -> None:
    """Let everyone see at their next look that this holder, which is known to be dead, has lapsed."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a holder")
    # Every lease of a holder is a link to this file: the lease time that they grant becomes none.
    with contextlib.suppress(FileNotFoundError), (holders / name).open("r+b") as file:
        stored, counter, _ = _BEAT.unpack(file.read(_BEAT.size))
        file.seek(0)
        file.write(_BEAT.pack(stored, counter, 0.0))


class Watch:
    """What this process has seen of the heartbeats of others."""

    def __init__(self, holders: Path) -> None:
        self._holders = holders
        self._seen: dict[bytes, tuple[int, float]] = {}

    def lapsed(self, lease: Path) -> bool:
        """Whether its holder has not been seen to live for the lease time. To be asked again and again."""
        now = time.monotonic()
        try:
            name, counter, lease_time = _BEAT.unpack(lease.read_bytes())
        except FileNotFoundError:
            return False  # taken over or settled a moment ago
        seen, since = self._seen.get(name, (counter, now))
        if counter != seen or now - since < lease_time:
            self._seen[name] = (counter, since if counter == seen else now)
            return False
        (self._holders / name.decode()).unlink(missing_ok=True)
        return True


@dataclass(frozen=True, slots=True)
class LeaseState:
    """What the names in a directory say of one lease."""

    epoch: int
    released: bool

    def is_free(self, path: Path, watch: Watch) -> bool:
        return self.released or watch.lapsed(path)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that this process has taken."""

    directory: Path
    stem: str
    epoch: int
    _start: str = field(init=False)

    def __post_init__(self) -> None:
        # A lease is looked at with every ack, and pathlib takes its time; so does any look that brings more than a yes.
        object.__setattr__(self, "_start", f"{self.directory}/{self.stem}.")

    def stands(self) -> bool:
        """Whether it is there. Who takes a lease with `take` has removed it before it reads anything."""
        return os.access(f"{self._start}{self.epoch}", os.F_OK)

    def holds(self) -> bool:
        """Whether nobody took it over. Who does so with `claim` creates the next epoch, and leaves this one."""
        return self.stands() and not os.access(f"{self._start}{self.epoch + 1}", os.F_OK)

    def release(self) -> None:
        """Let the next one take it at once. A file of that epoch stays, so that epochs rise."""
        with contextlib.suppress(FileNotFoundError):
            own = lease_path(self.directory, self.stem, self.epoch)
            own.rename(released_path(self.directory, self.stem, self.epoch))

    def remove(self) -> None:
        """Forget the lease and its epochs, once what it was for is settled."""
        for epoch in range(self.epoch + 1):
            lease_path(self.directory, self.stem, epoch).unlink(missing_ok=True)
            released_path(self.directory, self.stem, epoch).unlink(missing_ok=True)


def lease_path(directory: Path, stem: str, epoch: int) -> Path:
    return directory / f"{stem}.{epoch}"


def released_path(directory: Path, stem: str, epoch: int) -> Path:
    return directory / f"{stem}.{epoch}.free"


def lease_states(directory: Path) -> dict[str, LeaseState]:
    """Every lease in a directory at its highest epoch."""
    states: dict[str, LeaseState] = {}
    for stem, state in _leases(directory):
        if stem not in states or states[stem].epoch < state.epoch:
            states[stem] = state
    return states


def take(directory: Path, stem: str, epoch: int, holder: Holder) -> Lease | None:
    """Create the lease of that epoch and remove the ones before; None where another was faster."""
    lease = Lease(directory, stem, epoch)
    try:
        holder.link(lease_path(directory, stem, epoch))
    except FileExistsError:
        return None
    others = sorted(state.epoch for name, state in _leases(directory) if name == stem and state.epoch != epoch)
    if others and others[-1] > epoch:
        # What made this epoch look free was seen long ago; meanwhile others came and went.
        lease.remove()
        return None
    for before in others:
        lease_path(directory, stem, before).unlink(missing_ok=True)
        released_path(directory, stem, before).unlink(missing_ok=True)
    return lease


def claim(directory: Path, stem: str, epoch: int, holder: Holder) -> Lease | None:
    """The same for one of very many: nothing is listed, and the epochs before stay until `remove`.

    So whoever still believes in an epoch that others have had finds its file, or the one that it was renamed to.
    """
    lease = Lease(directory, stem, epoch)
    try:
        holder.link(lease_path(directory, stem, epoch))
    except FileExistsError:
        return None
    if released_path(directory, stem, epoch).exists():
        lease_path(directory, stem, epoch).unlink(missing_ok=True)
        return None
    return lease


def _leases(directory: Path) -> Iterator[tuple[str, LeaseState]]:
    for name in list_names(directory):
        if match := _LEASE.fullmatch(name):
            yield match[1], LeaseState(int(match[2]), released=match[3] is not None)
