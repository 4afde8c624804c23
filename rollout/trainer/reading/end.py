"""Finds out whether a reader has received everything, and reports what it waits for if nothing arrives."""

import logging
import time
from collections.abc import Callable, Sequence, Set
from enum import Enum, auto

from rollout.trainer.reading.launches import KnownLaunches
from transports import Queue

log = logging.getLogger(__name__)

_SILENT_SECONDS = 1.0
"""The time without a record after which a reader believes the end. The records of one process may become visible a
little later than those of another."""
_SHARED_DISK_SILENT_SECONDS = 65.0
"""The same for a queue of files, if a launch runs on another machine. By default, NFS shows a change of a file after at
most 60 seconds."""
_LONGEST_PAUSE_SECONDS = 1.0
"""The time between two reads that counts as silence at most. In the rest of it, the trainer did something else."""
_REPORT_AFTER_SECONDS = 30.0
_REPORT_EVERY_SECONDS = 600.0


class End(Enum):
    """Whether more records can arrive.

    Attributes:
        NOT_YET: more records may arrive.
        STOPPED: every launch has ended, but some rollouts were not played. A resumed launch may finish them, so what
            is incomplete stays in the queue.
        COMPLETE: every rollout has ended. What is incomplete now stays incomplete.
    """

    NOT_YET = auto()
    STOPPED = auto()
    COMPLETE = auto()


class EndFinder:
    """Finds the end of a queue for one reader.

    Args:
        queue: the queue that the reader reads.
        wait_for_more: whether the reader waits for more launches when all launches have ended.
        gap_timeout: the time in seconds to wait for what is still missing when every rollout has ended.
        given_up_runs: the runs whose end the reader does not wait for.
    """

    def __init__(self, queue: Queue, *, wait_for_more: bool, gap_timeout: float, given_up_runs: Set[str]) -> None:
        self._queue = queue
        self._wait_for_more = wait_for_more
        self._gap_timeout = gap_timeout
        self._given_up_runs = given_up_runs
        self._silence = 0.0
        self._last_read_at: float | None = None
        self._next_report_after = _REPORT_AFTER_SECONDS
        self._warned_of_empty_end = False

    def note_record(self) -> None:
        """Remember that a record has arrived."""
        self._silence, self._last_read_at, self._next_report_after = 0.0, None, _REPORT_AFTER_SECONDS

    def find(self, launches: KnownLaunches, *, has_incomplete: Callable[[], bool], describe: Callable[[], str]) -> End:
        """Return whether more records can arrive. Call it when `Queue.receive` has returned None.

        Args:
            launches: what the reader knows about launches.
            has_incomplete: returns whether the reader has received some rollouts or groups only in part.
            describe: returns sentences that say for what the reader waits. They are logged after a long silence.
        """
        if self._queue.ends:
            return End.COMPLETE
        self._count_silence()
        if self._given_up_runs:
            launches.give_up(self._given_up_runs)
        if not self._wait_for_more and launches.all_ended(self._queue.consumed_partitions):
            end = End.COMPLETE if launches.all_done else End.STOPPED
            needed_silence = self._needed_silence(launches)
            if end is End.COMPLETE and has_incomplete():
                needed_silence = max(needed_silence, self._gap_timeout)
            return end if self._silence >= needed_silence else End.NOT_YET
        if self._silence >= self._next_report_after:
            self._next_report_after += _REPORT_EVERY_SECONDS
            log.warning("%s", describe())
        return End.NOT_YET

    def warn_of_empty_end(self, launches: KnownLaunches) -> None:
        """Log once that the queue has ended before this reader has returned anything."""
        if not self._warned_of_empty_end:
            self._warned_of_empty_end = True
            log.warning(
                "%s: %s, and this reader has received no finished rollout. If another launch will write to this queue, "
                "use ReaderSettings(wait_for_more=True), or start the launch before the trainer.",
                self._queue.url,
                launches.describe_ended(),
            )

    def describe_wait(self, launches: KnownLaunches, *, unfinished: Sequence[str], grouped: int, stale: int) -> str:
        """Return sentences that say for what the reader waits.

        Args:
            launches: what the reader knows about launches.
            unfinished: the names of the rollouts of which records are missing.
            grouped: the number of finished rollouts that wait for the rest of their group.
            stale: the number of trajectories that were dropped because they were too stale.
        """
        sentences = [
            f"{self._queue.url}: no record has arrived for {self._silence:.0f} s.",
            launches.describe(self._queue.consumed_partitions),
        ]
        if unfinished:
            sentences.append(f"Unfinished rollouts: {len(unfinished)}, such as {unfinished[0]}.")
        if grouped:
            sentences.append(f"Finished rollouts that wait for the rest of their group: {grouped}.")
        if stale:
            sentences.append(f"Trajectories that were dropped because they were too stale: {stale}.")
        return " ".join(sentences)

    def _needed_silence(self, launches: KnownLaunches) -> float:
        is_shared_disk = self._queue.url.startswith("file:") and launches.any_elsewhere
        return _SHARED_DISK_SILENT_SECONDS if is_shared_disk else _SILENT_SECONDS

    def _count_silence(self) -> None:
        """Add the time since the last read, but not the time in which the trainer did something else."""
        now = time.monotonic()
        if self._last_read_at is not None:
            self._silence += min(now - self._last_read_at, _LONGEST_PAUSE_SECONDS)
        self._last_read_at = now
