"""The dead letters of a queue: read by any process, and taken away by a ledger of their own.

They lie in segments like other records, with the reason as their first frame. A letter is gone when a log beside it
says that it is acked; its segment goes when that holds for all of it and its writer has closed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from itertools import islice

from transports.base import DeadLetter, frames_nbytes
from transports.files.acks import AckLog, Entry, Fact, Ledger
from transports.files.directory import Layout, list_lanes, new_name
from transports.files.lanes import Lane
from transports.files.peeking import unacked
from transports.files.records import Record


class DeadLetters:
    """Those of all partitions, on behalf of one handle; for one thread at a time."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._logs: dict[int, AckLog] = {}

    def read(self, limit: int) -> list[DeadLetter]:
        """The first ones, in the order of their rejection within each consumer."""
        found = (letter for index in range(self._layout.partitions) for letter in self._read(index))
        return list(islice(found, limit))

    def discard(self, letter: DeadLetter) -> None:
        index, writer, seq = letter.id.split(".")
        entry = Entry(Fact.ACKED, writer, int(seq), frames_nbytes(letter.frames))
        self._log(int(index)).append([entry])

    def close(self) -> None:
        """Reclaim the segments of which nothing is left."""
        for index, log in self._logs.items():
            log.close()
            # What another process reclaims at the same time need not be.
            with contextlib.suppress(FileNotFoundError):
                self._reclaim(index)

    def _read(self, index: int) -> Iterator[DeadLetter]:
        directory = self._layout.dead(index)
        lanes = list_lanes(directory)
        ledger = Ledger(directory)
        ledger.refresh()
        for names in lanes:
            writer = names[0].writer
            for record in unacked(directory, names, ledger.lane(writer)):
                yield _letter(f"{index}.{writer}.{record.seq}", record)

    def _log(self, index: int) -> AckLog:
        if index not in self._logs:
            self._logs[index] = AckLog(self._layout.dead(index), epoch=0, holder=new_name(), opening=[])
        return self._logs[index]

    def _reclaim(self, index: int) -> None:
        directory = self._layout.dead(index)
        lanes = list_lanes(directory)
        ledger = Ledger(directory)
        ledger.refresh()
        # Durable before the segments go, or a later segment of the same writer would seem to miss its beginning.
        ledger.sync()
        for names in lanes:
            acks = ledger.lane(names[0].writer)
            lane = Lane(directory, names[0].writer, grace=math.inf)
            lane.see(names, acks.below)
            before = None
            while not lane.closed and lane.cursor != before:
                before = lane.cursor
                lane.advance(lane.read())
            for segment, following in lane.finished_segments():
                if following <= acks.below:
                    (directory / str(segment)).unlink(missing_ok=True)


def _letter(id_: str, record: Record) -> DeadLetter:
    reason, *frames = record.frames
    return DeadLetter(id_, tuple(frames), record.key, record.tag, str(reason, "utf-8", "surrogatepass"))
