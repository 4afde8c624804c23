"""The records of a queue, for a reader that only peeks: it leases nothing and waits for nothing."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

from transports.base import Peeked
from transports.files.acks import AckLedger, LaneAcks
from transports.files.directory import QueueDirectory, SegmentName, list_segments_by_writer
from transports.files.lanes import read_lane, read_segment
from transports.files.leases import read_lease_states
from transports.files.records import StoredRecord


def peek_backlog(queue_dir: QueueDirectory, limit: int) -> list[Peeked]:
    """The oldest unacked records of all partitions, by the clocks of their writers."""
    return _merge_oldest([(lane, lane.unacked()) for lane in _list_lanes(queue_dir)], limit)


def peek_stored(queue_dir: QueueDirectory, limit: int) -> list[Peeked]:
    """The oldest records of all partitions that are still on the disk, acked or not."""
    return _merge_oldest([(lane, lane.stored()) for lane in _list_lanes(queue_dir)], limit)


def unacked_records(directory: Path, segments: list[SegmentName], acks: LaneAcks) -> Iterator[StoredRecord]:
    """The records of a lane that are not acked. `acks` must be newer than the list of segments."""
    for segment, next_segment in zip_longest(segments, segments[1:]):
        if next_segment is not None and next_segment.first_seq <= acks.acked_below:
            continue
        # A segment that is reclaimed meanwhile has no unacked records.
        with contextlib.suppress(FileNotFoundError):
            for record in read_segment(directory, segment, next_segment):
                if not acks.is_acked(record.seq):
                    yield record


@dataclass(frozen=True, slots=True)
class _PeekedLane:
    """The segments of one writer in a partition, and what is known of their records."""

    directory: Path
    segments: list[SegmentName]
    acks: LaneAcks
    claimed_names: Set[str]
    partition: int

    def unacked(self) -> Iterator[StoredRecord]:
        return unacked_records(self.directory, self.segments, self.acks)

    def stored(self) -> Iterator[StoredRecord]:
        return read_lane(self.directory, self.segments)

    def peeked(self, record: StoredRecord) -> Peeked:
        is_acked = self.acks.is_acked(record.seq)
        is_claimed = f"{self.segments[0].writer}.{record.seq}" in self.claimed_names
        delivered = record.seq < self.acks.delivered_below or is_claimed or is_acked
        return Peeked(record.frames, record.key, record.tag, self.partition, record.seq, delivered, is_acked)


def _list_lanes(queue_dir: QueueDirectory) -> Iterator[_PeekedLane]:
    for index in range(queue_dir.partitions):
        directory = queue_dir.partition_dir(index)
        lanes = list_segments_by_writer(directory)
        claimed_names = read_lease_states(queue_dir.claims_dir(index)).keys()
        ledger = AckLedger(directory)
        ledger.refresh()
        for segments in lanes:
            yield _PeekedLane(directory, segments, ledger.lane(segments[0].writer), claimed_names, index)


def _merge_oldest(lanes: list[tuple[_PeekedLane, Iterator[StoredRecord]]], limit: int) -> list[Peeked]:
    timed = [_with_lane(lane, records) for lane, records in lanes]
    merged = heapq.merge(*timed, key=lambda entry: entry[1].put_at)
    return [lane.peeked(record) for lane, record in islice(merged, limit)]


def _with_lane(lane: _PeekedLane, records: Iterator[StoredRecord]) -> Iterator[tuple[_PeekedLane, StoredRecord]]:
    return ((lane, record) for record in records)
