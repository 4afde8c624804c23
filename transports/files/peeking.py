"""What is in a partition and not acked, as any process sees it that neither leases nor waits for anything."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Set
from itertools import islice, zip_longest
from pathlib import Path

from transports.base import Peeked
from transports.files.acks import LaneAcks, Ledger
from transports.files.directory import Layout, SegmentName, list_lanes
from transports.files.lanes import read_segment
from transports.files.leases import lease_states
from transports.files.records import Record


def peek_backlog(layout: Layout, limit: int) -> list[Peeked]:
    """The oldest unacked records of all partitions, by the clocks of their writers."""
    lanes = [lane for index in range(layout.partitions) for lane in _lanes(layout, index)]
    merged = heapq.merge(*lanes, key=lambda found: found[0])
    return [peeked for _, peeked in islice(merged, limit)]


def unacked(directory: Path, segments: list[SegmentName], acks: LaneAcks) -> Iterator[Record]:
    """The records of a lane that its ledger, refreshed after its segments were listed, does not know as acked."""
    for segment, following in zip_longest(segments, segments[1:]):
        if following is not None and following.first_seq <= acks.below:
            continue
        # A segment that is reclaimed meanwhile has nothing left that is not acked.
        with contextlib.suppress(FileNotFoundError):
            for record in read_segment(directory, segment, following):
                if not acks.holds(record.seq):
                    yield record


def _lanes(layout: Layout, index: int) -> Iterator[Iterator[tuple[float, Peeked]]]:
    directory = layout.partition(index)
    lanes = list_lanes(directory)
    claimed = lease_states(layout.claims(index)).keys()
    ledger = Ledger(directory)
    ledger.refresh()
    for names in lanes:
        yield _peeked(directory, names, ledger.lane(names[0].writer), claimed, index)


def _peeked(
    directory: Path, names: list[SegmentName], acks: LaneAcks, claimed: Set[str], index: int
) -> Iterator[tuple[float, Peeked]]:
    for record in unacked(directory, names, acks):
        delivered = record.seq < acks.lent or f"{names[0].writer}.{record.seq}" in claimed
        yield record.put_at, Peeked(record.frames, record.key, record.tag, index, record.seq, delivered)
