"""What both kinds of consumers share: the lanes of a partition, their acks, and the removal of acked segments."""

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
"""A lane whose last read was larger is read in a thread, so that the event loop does not wait for it. For a smaller
read, the change of thread costs more."""


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """The settings of a consumer, the same for every partition that it reads."""

    queue: Queue
    """The handle that it belongs to."""
    queue_dir: QueueDirectory
    """The directory of the queue."""
    holder: LeaseHolder
    """The heartbeat of its leases."""
    heartbeats: HeartbeatWatcher
    """What this process has seen of other heartbeats."""
    lease_time: float
    """Seconds without a heartbeat after which a lease has expired."""
    retain: bool
    """Whether acked records are kept."""
    segment_bytes: int
    """The size at which a new segment begins."""


class RecordRef(NamedTuple):
    """A record that was read and can be read again."""

    key: tuple[str, int]
    """Its writer, and its sequence number."""
    nbytes: int
    """The bytes of its frames."""
    segment: SegmentName
    """The segment that it is in."""
    offset: int
    """Where it begins in the segment."""

    @property
    def writer(self) -> str:
        """Its writer."""
        return self.key[0]

    @property
    def seq(self) -> int:
        """Its sequence number."""
        return self.key[1]


class PartitionReader:
    """Reads all lanes of a partition in turns, and removes acked segments."""

    def __init__(self, settings: ConsumerSettings, index: int) -> None:
        self.ledger = AckLedger(settings.queue_dir.partition_dir(index))
        self.directory = settings.queue_dir.partition_dir(index)
        self._settings = settings
        self._partition = index
        self._lanes: dict[str, LaneReader] = {}
        self._dead_letter_writer: SegmentWriter | None = None

    def update_segments(self, segment_lists: list[list[SegmentName]]) -> None:
        """Set the segments that exist now. The ledger must be newer than this list."""
        by_writer = {segments[0].writer: segments for segments in segment_lists}
        for removed in self._lanes.keys() - by_writer.keys():
            del self._lanes[removed]
            self.ledger.lanes.pop(removed, None)
        for writer, names in by_writer.items():
            if writer not in self._lanes:
                self._lanes[writer] = LaneReader(self.directory, writer, self._settings.lease_time)
            self._lanes[writer].update_segments(names, self.ledger.lane(writer).acked_below)

    async def read_next(self) -> tuple[str, SegmentChunk] | None:
        """Return the next records of a lane that has any, with its writer. Lanes take turns."""
        for writer, lane in list(self._lanes.items()):
            # If another consumer removes a segment meanwhile, the next `update_segments` notices it.
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
        """Yield the records of a chunk that are not acked."""
        acks = self.ledger.lane(writer)
        for record, offset in chunk.records:
            if (seq := record.seq) >= acks.acked_below and seq not in acks.acked_above:
                yield RecordRef((writer, seq), record.nbytes, chunk.segment, offset), record

    def reread(self, ref: RecordRef) -> StoredRecord:
        """Read a record again."""
        return read_record_at(self.directory / str(ref.segment), ref.offset)

    def make_delivery(self, ref: RecordRef, record: StoredRecord, *, epoch: int, redelivered: bool) -> Delivery:
        """Return the delivery of a record under a lease."""
        lane, queue = f"{self._partition}.{ref.writer}", self._settings.queue
        # Positional arguments take a quarter less time.
        return Delivery(
            record.frames, record.key, record.tag, self._partition, lane, ref.seq, redelivered, epoch, queue
        )

    def settled_segments(self) -> list[SegmentName]:
        """Return the finished segments whose records are all acked."""
        if self._settings.retain:
            return []
        return [
            segment
            for writer, lane in self._lanes.items()
            for segment, next_seq in lane.finished_segments()
            if next_seq <= self.ledger.lane(writer).acked_below
        ]

    def remove_segments(self, segments: list[SegmentName]) -> None:
        """Remove segments. The acks are synced first, so that a missing segment always means acked records."""
        self.ledger.sync()
        for segment in segments:
            (self.directory / str(segment)).unlink(missing_ok=True)

    def store_dead_letter(self, ref: RecordRef, reason: str) -> None:
        """Store a record durably as a dead letter, with the reason as its first frame."""
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
    """Return the key of the `RecordRef` that a delivery was made from."""
    return delivery.lane.partition(".")[2], delivery.position


def ack_entries(refs: Iterable[RecordRef]) -> list[LedgerEntry]:
    """Return the entries that ack these records."""
    return [LedgerEntry(EntryKind.ACKED, *ref.key, ref.nbytes) for ref in refs]
