"""The unacked records of a partition, for a reader that only peeks: it leases nothing and waits for nothing."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Set
from itertools import islice, zip_longest
from pathlib import Path

from transports.base import Peeked
from transports.files.acks import AckLedger, LaneAcks
from transports.files.directory import QueueDirectory, SegmentName, list_segments_by_writer
from transports.files.lanes import read_segment
from transports.files.leases import read_lease_states
from transports.files.records import StoredRecord


def peek_backlog(queue_dir: QueueDirectory, limit: int) -> list[Peeked]:
    """The oldest unacked records of all partitions, by the clocks of their writers."""
    lanes = [lane for index in range(queue_dir.partitions) for lane in _peek_lanes(queue_dir, index)]
    merged = heapq.merge(*lanes, key=lambda timed_record: timed_record[0])
    return [peeked for _, peeked in islice(merged, limit)]


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


def _peek_lanes(queue_dir: QueueDirectory, index: int) -> Iterator[Iterator[tuple[float, Peeked]]]:
    directory = queue_dir.partition_dir(index)
    lanes = list_segments_by_writer(directory)
    claimed_names = read_lease_states(queue_dir.claims_dir(index)).keys()
    ledger = AckLedger(directory)
    ledger.refresh()
    for segments in lanes:
        yield _peek_lane(directory, segments, ledger.lane(segments[0].writer), claimed_names, index)


def _peek_lane(
    directory: Path, segments: list[SegmentName], acks: LaneAcks, claimed_names: Set[str], index: int
) -> Iterator[tuple[float, Peeked]]:
    for record in unacked_records(directory, segments, acks):
        delivered = record.seq < acks.delivered_below or f"{segments[0].writer}.{record.seq}" in claimed_names
        yield record.put_at, Peeked(record.frames, record.key, record.tag, index, record.seq, delivered)
