"""Stores which records are acked. Each consumer writes a log of small entries with checksums; readers merge all logs.

A log begins with the acks that were known when its consumer started. An entry states a fact that stays true, such as
"record 7 is acked" or "all records below 5 are acked". So the logs may be merged in any order. A refresh reads only the
entries that were added since the last one. A log ends before the first incomplete entry.
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
from transports.files.directory import list_file_names, new_random_id

_ENTRY = struct.Struct("<B3x8sQQI")
_ENTRY_BODY = struct.Struct("<B3x8sQQ")
_LOG_NAME_PATTERN = re.compile(r"acks\.[0-9a-f]{16}\.[0-9a-f]{16}\.[0-9a-f]{8}")
_NO_WRITER = bytes(8)
_COMPACT_BYTES = 4 << 20


class EntryKind(IntEnum):
    """The kind of fact that an entry states."""

    ACKED_BELOW = 1
    """All records of the writer below `number` are acked; `nbytes` is their total size."""
    ACKED = 2
    """The record `number` of the writer is acked; `nbytes` is its size."""
    DELIVERED_BELOW = 3
    """The records of the writer below `number` may have been delivered."""
    REDELIVERIES = 4
    """The consumer of this log and the earlier consumers have delivered `number` records again."""


_KINDS_BY_NUMBER = {int(fact): fact for fact in EntryKind}


class LedgerEntry(NamedTuple):
    """An entry of an ack log."""

    kind: EntryKind
    """The kind of fact that the entry states."""
    writer: str
    """The id of the writer whose records the entry is about. Empty for REDELIVERIES."""
    number: int
    """A sequence number of the writer. For REDELIVERIES, a count."""
    nbytes: int = 0
    """The total size of the acked records, in bytes. 0 if the entry acks no records."""

    def pack(self) -> bytes:
        """Return the entry as bytes, with a checksum."""
        kind, writer, number, nbytes = self
        body = _ENTRY_BODY.pack(kind, bytes.fromhex(writer) if writer else _NO_WRITER, number, nbytes)
        return body + crc32(body).to_bytes(4, "little")


@dataclass(slots=True)
class LaneAcks:
    """The acks of one writer's records."""

    acked_below: int = 0
    """All records below this number are acked."""
    acked_below_nbytes: int = 0
    """The total size of the records below `acked_below`, in bytes."""
    acked_above: dict[int, int] = field(default_factory=dict)
    """For each acked record above `acked_below`: its number, and its size in bytes."""
    acked_above_nbytes: int = 0
    """The total size of the records in `acked_above`, in bytes."""
    delivered_below: int = 0
    """Records below this number may have been delivered."""

    @property
    def records(self) -> int:
        """The number of acked records."""
        return self.acked_below + len(self.acked_above)

    @property
    def nbytes(self) -> int:
        """The total size of the acked records, in bytes."""
        return self.acked_below_nbytes + self.acked_above_nbytes

    def is_acked(self, seq: int) -> bool:
        """Whether the record with this number is acked."""
        return seq < self.acked_below or seq in self.acked_above

    def mark_acked(self, seq: int, nbytes: int) -> None:
        """Remember that a record of this size is acked."""
        if seq == self.acked_below:
            self.acked_below += 1
            self.acked_below_nbytes += nbytes
            if self.acked_above:
                self._advance_below()
        elif not self.is_acked(seq):
            self.acked_above[seq] = nbytes
            self.acked_above_nbytes += nbytes

    def mark_acked_below(self, seq: int, nbytes: int) -> None:
        """Remember that all records below `seq` are acked. Their total size is `nbytes`."""
        if seq > self.acked_below:
            for passed_seq in [acked_seq for acked_seq in self.acked_above if acked_seq < seq]:
                self.acked_above_nbytes -= self.acked_above.pop(passed_seq)
            self.acked_below, self.acked_below_nbytes = seq, nbytes
            self._advance_below()

    def _advance_below(self) -> None:
        while self.acked_below in self.acked_above:
            nbytes = self.acked_above.pop(self.acked_below)
            self.acked_above_nbytes -= nbytes
            self.acked_below_nbytes += nbytes
            self.acked_below += 1


class AckLedger:
    """The acks in all logs of a directory, merged. `refresh` reads the new entries."""

    def __init__(self, directory: Path) -> None:
        self.lanes: dict[str, LaneAcks] = {}
        self._directory = directory
        self._read_offsets: dict[str, int] = {}
        self._redeliveries: dict[str, int] = {}

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Return a ledger with the acks that the logs of a directory contain now."""
        ledger = cls(directory)
        ledger.refresh()
        return ledger

    @property
    def redeliveries(self) -> int:
        """The number of repeated deliveries."""
        return sum(self._redeliveries.values())

    def lane(self, writer: str) -> LaneAcks:
        """Return the acks of a writer's records."""
        if writer not in self.lanes:
            self.lanes[writer] = LaneAcks()
        return self.lanes[writer]

    def log_names(self) -> list[str]:
        """Return the names of all logs, oldest epoch first."""
        return sorted(name for name in list_file_names(self._directory) if _LOG_NAME_PATTERN.fullmatch(name))

    def refresh(self, *, except_log: str = "") -> None:
        """Read the entries that were added to the logs since the last refresh. Skip the log `except_log`.

        The caller gives the name of its own log, because it has applied these entries itself.
        """
        log_names = self.log_names()
        for removed in self._read_offsets.keys() - set(log_names):
            del self._read_offsets[removed]
            self._redeliveries.pop(removed, None)
        for name in log_names:
            if name != except_log:
                self._refresh_from(name)

    def sync(self) -> None:
        """Sync all logs to the disk, so that every ack that was read so far survives a power loss."""
        for name in self.log_names():
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(self._directory / name, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    def apply(self, log_name: str, entry: LedgerEntry) -> None:
        """Add the fact that an entry of this log states."""
        if entry.kind is EntryKind.REDELIVERIES:
            self._redeliveries[log_name] = entry.number
            return
        lane_acks = self.lane(entry.writer)
        if entry.kind is EntryKind.ACKED:
            lane_acks.mark_acked(entry.number, entry.nbytes)
        elif entry.kind is EntryKind.ACKED_BELOW:
            lane_acks.mark_acked_below(entry.number, entry.nbytes)
        else:
            lane_acks.delivered_below = entry.number

    def snapshot(self, writers: Iterable[str], redeliveries: int) -> list[LedgerEntry]:
        """Return the entries for all known acks of these writers, and one entry for the redeliveries."""
        entries = [LedgerEntry(EntryKind.REDELIVERIES, "", redeliveries)]
        for writer in writers:
            lane_acks = self.lane(writer)
            entries.append(
                LedgerEntry(EntryKind.ACKED_BELOW, writer, lane_acks.acked_below, lane_acks.acked_below_nbytes)
            )
            entries.append(LedgerEntry(EntryKind.DELIVERED_BELOW, writer, lane_acks.delivered_below))
            entries.extend(
                LedgerEntry(EntryKind.ACKED, writer, seq, nbytes) for seq, nbytes in lane_acks.acked_above.items()
            )
        return entries

    def _refresh_from(self, name: str) -> None:
        start = self._read_offsets.get(name, 0)
        try:
            fd = os.open(self._directory / name, os.O_RDONLY | os.O_NONBLOCK)  # never block on a named pipe
        except FileNotFoundError:
            return
        try:
            data = os.pread(fd, max(0, os.fstat(fd).st_size - start), start)
        finally:
            os.close(fd)
        whole_bytes = len(data) - len(data) % _ENTRY.size
        for offset in range(0, whole_bytes, _ENTRY.size):
            entry = _unpack_entry(data, offset)
            if entry is None:
                whole_bytes = offset
                break
            self.apply(name, entry)
        self._read_offsets[name] = start + whole_bytes


class AckLog:
    """The ack log that this consumer writes."""

    def __init__(
        self, directory: Path, *, epoch: int, holder: str, initial_entries: list[LedgerEntry], generation: int = 0
    ) -> None:
        self.name = f"acks.{epoch:016x}.{holder}.{generation:08x}"
        self._directory = directory
        self._name_parts = (epoch, holder, generation)
        temporary_file = directory / f"draft.{new_random_id()}"
        self._fd = os.open(temporary_file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._end = 0
        try:
            self.append(initial_entries)
            self._initial_bytes = self._end
            # The log must be complete on the disk when it gets its final name: older logs are removed after that.
            os.fsync(self._fd)
            temporary_file.rename(directory / self.name)
        except BaseException:
            os.close(self._fd)
            temporary_file.unlink()
            raise

    @property
    def needs_compaction(self) -> bool:
        """Whether the log is so long that a new one should replace it."""
        return self._end > _COMPACT_BYTES + 2 * self._initial_bytes

    def append(self, entries: Iterable[LedgerEntry]) -> None:
        """Write entries. If the disk refuses, the log stays as it was, and QueueStorageError is raised."""
        data = b"".join([entry.pack() for entry in entries])
        try:
            written = os.pwrite(self._fd, data, self._end)
            if written != len(data):
                os.ftruncate(self._fd, self._end)
                raise QueueStorageError(
                    f"{self._directory}: the disk is full, so the acks were not stored. Free some space."
                )
        except OSError as error:
            raise QueueStorageError(
                f"{self._directory}: the acks were not stored: {error.strerror}. Check the disk and the permissions."
            ) from error
        self._end += len(data)

    def compacted(self, initial_entries: list[LedgerEntry]) -> Self:
        """Replace this log with a new, shorter log that begins with `initial_entries`. Return the new log."""
        epoch, holder, generation = self._name_parts
        successor = type(self)(
            self._directory, epoch=epoch, holder=holder, initial_entries=initial_entries, generation=generation + 1
        )
        self.close()
        (self._directory / self.name).unlink(missing_ok=True)
        return successor

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Close the file. A second call changes nothing."""
        if not self.closed:
            os.close(self._fd)
            self._fd = -1


def _unpack_entry(data: bytes, offset: int) -> LedgerEntry | None:
    kind_number, writer, number, nbytes, checksum = _ENTRY.unpack_from(data, offset)
    kind = _KINDS_BY_NUMBER.get(kind_number)
    if kind is None or crc32(data[offset : offset + _ENTRY_BODY.size]) != checksum:
        return None
    return LedgerEntry(kind, "" if writer == _NO_WRITER else writer.hex(), number, nbytes)
