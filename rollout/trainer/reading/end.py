"""Finds out whether a reader has received everything, and reports what it waits for if nothing arrives."""

import logging
import time
from collections.abc import Callable
from enum import Enum, auto

from rollout.trainer.reading.launches import KnownLaunches
from transports import Queue

log = logging.getLogger(__name__)

_SILENT_SECONDS = 1.0
"""The time without a record after which a reader believes the end. On a shared disk, the records of one process may
become visible a little later than those of another."""
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
    """

    def __init__(self, queue: Queue, *, wait_for_more: bool, gap_timeout: float) -> None:
        self._queue = queue
        self._wait_for_more = wait_for_more
        self._gap_timeout = gap_timeout
        self._silent_since: float | None = None
        self._next_report_after = _REPORT_AFTER_SECONDS
        self._warned_of_empty_end = False

    def note_record(self) -> None:
        """Remember that a record has arrived."""
        self._silent_since, self._next_report_after = None, _REPORT_AFTER_SECONDS

    def find(self, launches: KnownLaunches, *, has_incomplete: Callable[[], bool], describe: Callable[[], str]) -> End:
        """Return whether more records can arrive. Call it when `Queue.receive` has returned None.

        Args:
            launches: what the reader knows about launches.
            has_incomplete: returns whether the reader has received some rollouts or groups only in part.
            describe: returns sentences that say for what the reader waits. They are logged after a long silence.
        """
        if self._queue.ends:
            return End.COMPLETE
        silence = self._silence(time.monotonic())
        if not self._wait_for_more and launches.all_ended(self._queue.consumed_partitions):
            if not launches.all_done:
                return End.STOPPED if silence >= _SILENT_SECONDS else End.NOT_YET
            needed_silence = self._gap_timeout if has_incomplete() else _SILENT_SECONDS
            return End.COMPLETE if silence >= needed_silence else End.NOT_YET
        if silence >= self._next_report_after:
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

    def describe_silence(self, launches: KnownLaunches) -> str:
        """Return sentences that say how long no record has arrived, and which launch may send more."""
        silence = 0.0 if self._silent_since is None else time.monotonic() - self._silent_since
        return (
            f"{self._queue.url}: no record has arrived for {silence:.0f} s. "
            f"{launches.describe(self._queue.consumed_partitions)}"
        )

    def _silence(self, now: float) -> float:
        """Return the seconds since the first time that no record was there."""
        self._silent_since = now if self._silent_since is None else self._silent_since
        return now - self._silent_since
