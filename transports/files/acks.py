"""What was acked: small checksummed entries, appended by one consumer each, that add up in any order.

A consumer writes a log of its own that begins with what was known when it began. Entries say facts that stay true
(records below a number are acked; one record is), so logs are merged by taking everything any of them says, and whoever
looks on reads only what was added since. A log ends where an entry is not whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Self
from zlib import crc32

from transports.errors import QueueStorageError
from transports.files.directory import list_names, new_name

_ENTRY = struct.Struct("<B3x8sQQI")
_ENTRY_BODY = struct.Struct("<B3x8sQQ")
_LOG = re.compile(r"acks\.[0-9a-f]{16}\.[0-9a-f]{16}\.[0-9a-f]{8}")
_NOBODY = bytes(8)
_COMPACT_BYTES = 4 << 20


class Fact(IntEnum):
    BELOW = 1
    """Every record of the writer below `number` is acked; they had `amount` bytes."""
    ACKED = 2
    """Record `number` of the writer is acked; it had `amount` bytes."""
    LENT = 3
    """Records of the writer below `number` may have been delivered."""
    REDELIVERED = 4
    """`number` records were delivered again, by the consumer of this log and those it took over from."""


_FACTS = {int(fact): fact for fact in Fact}


class Entry(NamedTuple):
    fact: Fact
    writer: str
    number: int
    amount: int = 0

    def pack(self) -> bytes:
        fact, name, number, amount = self
        body = _ENTRY_BODY.pack(fact, bytes.fromhex(name) if name else _NOBODY, number, amount)
        return body + crc32(body).to_bytes(4, "little")


@dataclass(slots=True)
class LaneAcks:
    """What is acked of one writer."""

    below: int = 0
    bytes_below: int = 0
    above: dict[int, int] = field(default_factory=dict)
    """Records acked out of order, with their bytes."""
    bytes_above: int = 0
    lent: int = 0

    @property
    def records(self) -> int:
        return self.below + len(self.above)

    @property
    def nbytes(self) -> int:
        return self.bytes_below + self.bytes_above

    def holds(self, seq: int) -> bool:
        return seq < self.below or seq in self.above

    def ack(self, seq: int, nbytes: int) -> None:
        if seq == self.below:
            self.below += 1
            self.bytes_below += nbytes
            if self.above:
                self._close_up()
        elif not self.holds(seq):
            self.above[seq] = nbytes
            self.bytes_above += nbytes

    def ack_below(self, seq: int, nbytes: int) -> None:
        if seq > self.below:
            for passed in [known for known in self.above if known < seq]:
                self.bytes_above -= self.above.pop(passed)
            self.below, self.bytes_below = seq, nbytes
            self._close_up()

    def _close_up(self) -> None:
        while self.below in self.above:
            nbytes = self.above.pop(self.below)
            self.bytes_above -= nbytes
            self.bytes_below += nbytes
            self.below += 1


class Ledger:
    """Everything that the logs of a partition say, kept up to date by `refresh`."""

    def __init__(self, directory: Path) -> None:
        self.lanes: dict[str, LaneAcks] = {}
        self._directory = directory
        self._read: dict[str, int] = {}
        self._redeliveries: dict[str, int] = {}

    @property
    def redeliveries(self) -> int:
        return sum(self._redeliveries.values())

    def lane(self, writer: str) -> LaneAcks:
        if writer not in self.lanes:
            self.lanes[writer] = LaneAcks()
        return self.lanes[writer]

    def logs(self) -> list[str]:
        """The logs there are, oldest epoch first."""
        return sorted(name for name in list_names(self._directory) if _LOG.fullmatch(name))

    def refresh(self, *, but: str = "") -> None:
        """Take in what was added to the logs since, except to the one that this process writes itself."""
        logs = self.logs()
        for gone in self._read.keys() - set(logs):
            del self._read[gone]
            self._redeliveries.pop(gone, None)
        for name in logs:
            if name != but:
                self._refresh_from(name)

    def sync(self) -> None:
        """Make every ack that was read so far survive a power loss, whoever wrote it."""
        for name in self.logs():
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(self._directory / name, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    def apply(self, log: str, entry: Entry) -> None:
        if entry.fact is Fact.REDELIVERED:
            self._redeliveries[log] = entry.number
            return
        lane = self.lane(entry.writer)
        if entry.fact is Fact.ACKED:
            lane.ack(entry.number, entry.amount)
        elif entry.fact is Fact.BELOW:
            lane.ack_below(entry.number, entry.amount)
        else:
            lane.lent = entry.number

    def snapshot(self, writers: Iterable[str], redeliveries: int) -> list[Entry]:
        """Entries that say it all anew for those writers."""
        entries = [Entry(Fact.REDELIVERED, "", redeliveries)]
        for writer in writers:
            lane = self.lane(writer)
            entries.append(Entry(Fact.BELOW, writer, lane.below, lane.bytes_below))
            entries.append(Entry(Fact.LENT, writer, lane.lent))
            entries.extend(Entry(Fact.ACKED, writer, seq, nbytes) for seq, nbytes in lane.above.items())
        return entries

    def _refresh_from(self, name: str) -> None:
        start = self._read.get(name, 0)
        try:
            fd = os.open(self._directory / name, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            data = os.pread(fd, max(0, os.fstat(fd).st_size - start), start)
        finally:
            os.close(fd)
        whole = len(data) - len(data) % _ENTRY.size
        for at in range(0, whole, _ENTRY.size):
            entry = _unpack(data, at)
            if entry is None:
                whole = at
                break
            self.apply(name, entry)
        self._read[name] = start + whole


class AckLog:
    """The log that this consumer appends to."""

    def __init__(self, directory: Path, *, epoch: int, holder: str, opening: list[Entry], generation: int = 0) -> None:
        self.name = f"acks.{epoch:016x}.{holder}.{generation:08x}"
        self._directory = directory
        self._made = (epoch, holder, generation)
        draft = directory / f"draft.{new_name()}"
        self._fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._end = 0
        try:
            self.append(opening)
            self._opening_bytes = self._end
            # The log appears with its whole beginning or not at all: its predecessors may go once it is there.
            os.fsync(self._fd)
            draft.rename(directory / self.name)
        except BaseException:
            os.close(self._fd)
            draft.unlink()
            raise

    @property
    def is_long(self) -> bool:
        """Whether it is worth to be begun anew, which takes at least the room of what was known at its beginning."""
        return self._end > _COMPACT_BYTES + 2 * self._opening_bytes

    def append(self, entries: Iterable[Entry]) -> None:
        data = b"".join([entry.pack() for entry in entries])
        try:
            written = os.pwrite(self._fd, data, self._end)
            if written != len(data):
                os.ftruncate(self._fd, self._end)
                raise QueueStorageError(f"{self._directory}: the medium is full; the acks were not recorded")
        except OSError as error:
            raise QueueStorageError(f"{self._directory}: the acks were not recorded: {error.strerror}") from error
        self._end += len(data)

    def renewed(self, opening: list[Entry]) -> Self:
        """A short log in the place of this one."""
        epoch, holder, generation = self._made
        successor = type(self)(self._directory, epoch=epoch, holder=holder, opening=opening, generation=generation + 1)
        self.close()
        (self._directory / self.name).unlink(missing_ok=True)
        return successor

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
            self._fd = -1


def _unpack(data: bytes, at: int) -> Entry | None:
    number_of_fact, writer, number, amount, checksum = _ENTRY.unpack_from(data, at)
    fact = _FACTS.get(number_of_fact)
    if fact is None or crc32(data[at : at + _ENTRY_BODY.size]) != checksum:
        return None
    return Entry(fact, "" if writer == _NOBODY else writer.hex(), number, amount)
