"""Reads a partition for both kinds of consumers: its lanes and its acks. Also removes segments that are acked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from transports.base import Delivery, Queue
from transports.files.acks import AckLedger, EntryKind, LedgerEntry
from transports.files.directory import QueueDirectory, SegmentName
from transports.files.lanes import LaneReader, SegmentChunk, read_record_at
from transports.files.leases import HeartbeatWatcher, LeaseHolder
from transports.files.records import StoredRecord
from transports.files.segments import SegmentWriter

_INLINE_BYTES = 4 << 20
"""If the last read of a lane had more bytes, the next read runs in a thread, so that the event loop does not wait. For
a smaller read, starting the thread would take longer than the read."""


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """The settings that the consumers of all partitions of one handle share."""

    queue: Queue
    """The handle to which the consumers belong."""
    queue_dir: QueueDirectory
    """The directory of the queue."""
    holder: LeaseHolder
    """Sends the heartbeat for the leases of the handle."""
    heartbeats: HeartbeatWatcher
    """Watches the heartbeats of other holders."""
    lease_time: float
    """Seconds without a heartbeat after which a lease has expired."""
    retain: bool
    """Whether the queue keeps acked records."""
    segment_bytes: int
    """The number of bytes after which a new segment of dead letters begins."""


class RecordRef(NamedTuple):
    """The place of a record on the disk, so that it can be read again without keeping its frames in memory."""

    key: tuple[str, int]
    """The id of the record's writer, and the sequence number of the record."""
    nbytes: int
    """The total size of the record's frames, in bytes."""
    segment: SegmentName
    """The segment that contains the record."""
    offset: int
    """The byte of the segment at which the record begins."""

    @property
    def writer(self) -> str:
        """The id of the record's writer."""
        return self.key[0]

    @property
    def seq(self) -> int:
        """The sequence number of the record."""
        return self.key[1]


class PartitionReader:
    """Reads the lanes of a partition in turns, stores dead letters, and removes acked segments."""

    def __init__(self, settings: ConsumerSettings, index: int) -> None:
        self.ledger = AckLedger(settings.queue_dir.partition_dir(index))
        self.directory = settings.queue_dir.partition_dir(index)
        self._settings = settings
        self._partition = index
        self._lanes: dict[str, LaneReader] = {}
        self._dead_letter_writer: SegmentWriter | None = None

    def update_segments(self, segment_lists: list[list[SegmentName]]) -> None:
        """Set the segments that exist now, a list for each writer. Refresh the ledger after you list them."""
        by_writer = {segments[0].writer: segments for segments in segment_lists}
        for removed in self._lanes.keys() - by_writer.keys():
            del self._lanes[removed]
            self.ledger.lanes.pop(removed, None)
        for writer, names in by_writer.items():
            if writer not in self._lanes:
                self._lanes[writer] = LaneReader(self.directory, writer, self._settings.lease_time)
            self._lanes[writer].update_segments(names, self.ledger.lane(writer).acked_below)

    async def read_next(self) -> tuple[str, SegmentChunk] | None:
        """Return the writer and the next records of a lane; None if no lane has new records. Lanes take turns."""
        for writer, lane in list(self._lanes.items()):
            # If another consumer removes a segment during the read, the next `update_segments` notices that.
            with contextlib.suppress(FileNotFoundError):
                if (chunk := await self._read(lane)) is not None:
                    self._lanes[writer] = self._lanes.pop(writer)
                    return writer, chunk
        return None

    async def _read(self, lane: LaneReader) -> SegmentChunk | None:
        while not lane.writer_closed:
            previous_cursor = lane.cursor
            large = lane.last_read_bytes > _INLINE_BYTES
            chunk = await asyncio.to_thread(lane.read) if large else lane.read()
            lane.advance(chunk)
            if chunk.records:
                return chunk
            if lane.cursor == previous_cursor:
                break
        return None

    def unacked_refs(self, writer: str, chunk: SegmentChunk) -> Iterator[tuple[RecordRef, StoredRecord]]:
        """Yield each record of a chunk that is not acked, with its place on the disk."""
        acks = self.ledger.lane(writer)
        for record, offset in chunk.records:
            if (seq := record.seq) >= acks.acked_below and seq not in acks.acked_above:
                yield RecordRef((writer, seq), record.nbytes, chunk.segment, offset), record

    def reread(self, ref: RecordRef) -> StoredRecord:
        """Read a record again, and return it."""
        return read_record_at(self.directory / str(ref.segment), ref.offset)

    def make_delivery(self, ref: RecordRef, record: StoredRecord, *, epoch: int, redelivered: bool) -> Delivery:
        """Return the delivery of a record. `epoch` is the epoch of its lease."""
        lane, queue = f"{self._partition}.{ref.writer}", self._settings.queue
        # Positional arguments, because they take a quarter less time than keywords.
        return Delivery(
            record.frames, record.key, record.tag, self._partition, lane, ref.seq, redelivered, epoch, queue
        )

    def settled_segments(self) -> list[SegmentName]:
        """Return the finished segments whose records are all acked; none if the queue retains acked records."""
        if self._settings.retain:
            return []
        return [
            segment
            for writer, lane in self._lanes.items()
            for segment, next_seq in lane.finished_segments()
            if next_seq <= self.ledger.lane(writer).acked_below
        ]

    def remove_segments(self, segments: list[SegmentName]) -> None:
        """Sync the acks, and then remove segments. So the records of a missing segment are always known to be acked."""
        self.ledger.sync()
        for segment in segments:
            (self.directory / str(segment)).unlink(missing_ok=True)

    def store_dead_letter(self, ref: RecordRef, reason: str) -> None:
        """Store a record as a dead letter, with the reason as its first frame, and sync it to the disk."""
        if self._dead_letter_writer is None:
            self._dead_letter_writer = SegmentWriter(
                self._settings.queue_dir.dead_letters_dir(self._partition), self._settings.segment_bytes
            )
        record = self.reread(ref)
        self._dead_letter_writer.append(
            (reason.encode("utf-8", "surrogatepass"), *record.frames), record.key, record.tag
        )
        self._dead_letter_writer.sync()

    def close(self) -> None:
        """Close the writer of dead letters."""
        if self._dead_letter_writer is not None:
            self._dead_letter_writer.close()


def writer_position(delivery: Delivery) -> tuple[str, int]:
    """Return the writer and the sequence number of a delivered record, as in `RecordRef.key`."""
    return delivery.lane.partition(".")[2], delivery.position


def ack_entries(refs: Iterable[RecordRef]) -> list[LedgerEntry]:
    """Return the log entries that ack these records."""
    return [LedgerEntry(EntryKind.ACKED, *ref.key, ref.nbytes) for ref in refs]
