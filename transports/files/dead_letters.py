"""Reads and discards the dead letters of a queue, in any process.

Dead letters are stored in segments, as other records are, with the reason as their first frame. `discard` writes
the ack of a letter to a log in the same directory. A segment is removed when all its letters are discarded and the
process that wrote it has closed the queue.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from itertools import islice

from transports.base import DeadLetter, frames_nbytes
from transports.files.acks import AckLedger, AckLog, EntryKind, LedgerEntry
from transports.files.directory import QueueDirectory, list_segments_by_writer, new_random_id
from transports.files.lanes import LaneReader, read_unacked
from transports.files.records import StoredRecord


class DeadLetterStore:
    """The dead letters of all partitions, for one handle. Only one thread may use it at a time."""

    def __init__(self, queue_dir: QueueDirectory) -> None:
        self._queue_dir = queue_dir
        self._discard_logs: dict[int, AckLog] = {}

    def read(self, limit: int) -> list[DeadLetter]:
        """Return the first `limit` dead letters. The letters of one consumer are in the order of their rejection."""
        letters = (letter for index in range(self._queue_dir.partitions) for letter in self._read(index))
        return list(islice(letters, limit))

    def discard(self, letter: DeadLetter) -> None:
        """Remove a dead letter. Do nothing if it is removed already."""
        index, writer, seq = letter.id.split(".")
        entry = LedgerEntry(EntryKind.ACKED, writer, int(seq), frames_nbytes(letter.frames))
        self._discard_log(int(index)).append([entry])

    def close(self) -> None:
        """Close the logs, and remove the segments whose letters are all discarded."""
        for index, log in self._discard_logs.items():
            log.close()
            # Another process may remove the same segments at the same time.
            with contextlib.suppress(FileNotFoundError):
                self._reclaim(index)

    def _read(self, index: int) -> Iterator[DeadLetter]:
        directory = self._queue_dir.dead_letters_dir(index)
        lanes = list_segments_by_writer(directory)
        ledger = AckLedger.read(directory)
        for segments in lanes:
            writer = segments[0].writer
            for record in read_unacked(directory, segments, ledger.lane(writer)):
                yield _to_dead_letter(f"{index}.{writer}.{record.seq}", record)

    def _discard_log(self, index: int) -> AckLog:
        if index not in self._discard_logs:
            self._discard_logs[index] = AckLog(
                self._queue_dir.dead_letters_dir(index), epoch=0, holder=new_random_id(), initial_entries=[]
            )
        return self._discard_logs[index]

    def _reclaim(self, index: int) -> None:
        directory = self._queue_dir.dead_letters_dir(index)
        lanes = list_segments_by_writer(directory)
        ledger = AckLedger.read(directory)
        # Sync the acks before segments are removed. Without its acks, a removed segment would look like a lost one.
        ledger.sync()
        for segments in lanes:
            acks = ledger.lane(segments[0].writer)
            reader = LaneReader(directory, segments[0].writer, torn_tail_seconds=math.inf)
            reader.update_segments(segments, acks.acked_below)
            previous_cursor = None
            while not reader.writer_closed and reader.cursor != previous_cursor:
                previous_cursor = reader.cursor
                reader.advance(reader.read())
            for segment, following in reader.finished_segments():
                if following <= acks.acked_below:
                    (directory / str(segment)).unlink(missing_ok=True)


def _to_dead_letter(id_: str, record: StoredRecord) -> DeadLetter:
    reason_frame, *frames = record.frames
    try:
        reason = str(reason_frame, "utf-8", "surrogatepass")
    except UnicodeDecodeError:
        reason = str(reason_frame, "utf-8", "replace")
    return DeadLetter(id_, tuple(frames), record.key, record.tag, reason)
