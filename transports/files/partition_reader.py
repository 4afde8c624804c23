"""What both kinds of consumers share: the lanes of a partition, what is acked of them, what can be reclaimed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from transports.base import Delivery, Queue
from transports.files.acks import Entry, Fact, Ledger
from transports.files.directory import Layout, SegmentName
from transports.files.lanes import Chunk, Lane, read_at
from transports.files.leases import Holder, Watch
from transports.files.records import Record
from transports.files.segments import SegmentWriter

_INLINE_BYTES = 4 << 20
"""A lane whose last read was larger is read in a thread, so that the event loop does not wait for it. Handing a smaller
one over, and its bytes from one processor's cache to another's, costs more than reading it."""


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """What a consumer is told about every partition it reads."""

    queue: Queue
    layout: Layout
    holder: Holder
    watch: Watch
    lease_time: float
    retain: bool
    segment_bytes: int


class Ref(NamedTuple):
    """A record that was read and can be read again."""

    key: tuple[str, int]
    """Its writer, and its number there."""
    nbytes: int
    segment: SegmentName
    offset: int

    @property
    def writer(self) -> str:
        return self.key[0]

    @property
    def seq(self) -> int:
        return self.key[1]


class PartitionReader:
    """Reads all lanes of one partition in turns, and reclaims their segments."""

    def __init__(self, settings: SourceSettings, index: int) -> None:
        self.ledger = Ledger(settings.layout.partition(index))
        self.directory = settings.layout.partition(index)
        self._settings = settings
        self._index = index
        self._lanes: dict[str, Lane] = {}
        self._dead: SegmentWriter | None = None

    def see(self, lanes: list[list[SegmentName]]) -> None:
        """Take note of the segments there are; the ledger must have been refreshed after they were listed."""
        by_writer = {names[0].writer: names for names in lanes}
        for gone in self._lanes.keys() - by_writer.keys():
            del self._lanes[gone]
            self.ledger.lanes.pop(gone, None)
        for writer, names in by_writer.items():
            if writer not in self._lanes:
                self._lanes[writer] = Lane(self.directory, writer, self._settings.lease_time)
            self._lanes[writer].see(names, self.ledger.lane(writer).below)

    async def read_on(self) -> tuple[str, Chunk] | None:
        """The next records of a lane that has any, with its writer. Lanes take turns."""
        for writer, lane in list(self._lanes.items()):
            # A segment that another consumer reclaims meanwhile is noticed by the next `see`.
            with contextlib.suppress(FileNotFoundError):
                if (chunk := await self._read(lane)) is not None:
                    self._lanes[writer] = self._lanes.pop(writer)
                    return writer, chunk
        return None

    async def _read(self, lane: Lane) -> Chunk | None:
        while not lane.closed:
            before = lane.cursor
            large = lane.last_read_bytes > _INLINE_BYTES
            chunk = await asyncio.to_thread(lane.read) if large else lane.read()
            lane.advance(chunk)
            if chunk.records:
                return chunk
            if lane.cursor == before:
                break
        return None

    def refs(self, writer: str, chunk: Chunk) -> Iterator[tuple[Ref, Record]]:
        """What of a chunk is not acked yet."""
        acks = self.ledger.lane(writer)
        for record, offset in chunk.records:
            if (seq := record.seq) >= acks.below and seq not in acks.above:
                yield Ref((writer, seq), record.nbytes, chunk.segment, offset), record

    def read_again(self, ref: Ref) -> Record:
        return read_at(self.directory / str(ref.segment), ref.offset)

    def delivery(self, ref: Ref, record: Record, *, epoch: int, redelivered: bool) -> Delivery:
        lane, queue = f"{self._index}.{ref.writer}", self._settings.queue
        # By position, which takes a quarter less time than by name: a consumer that is behind makes little else.
        return Delivery(record.frames, record.key, record.tag, self._index, lane, ref.seq, redelivered, epoch, queue)

    def settled_segments(self) -> list[SegmentName]:
        """Segments that nobody will write to or read from again."""
        if self._settings.retain:
            return []
        return [
            segment
            for writer, lane in self._lanes.items()
            for segment, following in lane.finished_segments()
            if following <= self.ledger.lane(writer).below
        ]

    def remove(self, segments: list[SegmentName]) -> None:
        """Reclaim segments. Their acks are made durable first, so that none is ever missed that was not acked."""
        self.ledger.sync()
        for segment in segments:
            (self.directory / str(segment)).unlink(missing_ok=True)

    def bury(self, ref: Ref, reason: str) -> None:
        """Put a record among the dead letters, for good, with the reason as its first frame."""
        if self._dead is None:
            self._dead = SegmentWriter(self._settings.layout.dead(self._index), self._settings.segment_bytes)
        record = self.read_again(ref)
        self._dead.append((reason.encode("utf-8", "surrogatepass"), *record.frames), record.key, record.tag)
        self._dead.sync()

    def close(self) -> None:
        if self._dead is not None:
            self._dead.close()


def key_of(delivery: Delivery) -> tuple[str, int]:
    """The key of the Ref that a delivery was made from."""
    return delivery.lane.partition(".")[2], delivery.position


def ack_entries(refs: Iterable[Ref]) -> list[Entry]:
    return [Entry(Fact.ACKED, *ref.key, ref.nbytes) for ref in refs]
