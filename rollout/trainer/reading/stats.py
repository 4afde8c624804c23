"""Defines the counters of a reader, and a snapshot of its counters and of the data that it holds."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class ReaderCounters:
    """Counts what a reader did since it was created. The values only grow."""

    trajectories: int = 0
    """Trajectories that the reader returned to the trainer."""
    groups: int = 0
    """Groups that the reader returned to the trainer; `trajectories` counts their members, too."""
    records: int = 0
    """Records that were received."""
    bytes: int = 0
    """Bytes of the records that were received."""
    redelivered: int = 0
    """Records that the queue had delivered before."""
    dropped: int = 0
    """Records that were dropped because their rollout was already consumed, or because their group timed out."""
    rejected: int = 0
    """Records that could not be decoded."""
    stale: int = 0
    """Trajectories that were dropped because of `ReaderSettings.max_staleness`."""
    held_back: int = 0
    """Returned trajectories with a score that do not train because of `ReaderSettings.untrained_limits`."""
    partial_groups: int = 0
    """Groups that timed out before they were whole; each was either returned to the trainer or dropped."""
    staleness: Counter[int] = field(default_factory=Counter)
    """The number of returned trajectories for each staleness in versions; an unknown staleness is not counted."""

    def add_staleness(self, versions_behind: Iterable[int | None]) -> None:
        """Count trajectories by their staleness in versions; None means unknown and is not counted."""
        self.staleness.update(versions for versions in versions_behind if versions is not None)


@dataclass(kw_only=True)
class ReaderStats(ReaderCounters):
    """A copy of a reader's counters, and the amount of data that the reader holds now."""

    unfinished: int
    """Rollouts of which some records have arrived and others are still missing."""
    waiting: int
    """Rollouts that are complete or failed, and that the trainer has not received yet."""
    unacked: int
    """Records that this reader has received and not acked."""
    bytes_in_memory: int
    """Bytes that the steps of unfinished and waiting rollouts take in memory."""
    bytes_on_disk: int
    """Bytes that the steps of these rollouts take on disk, because they were spilled."""

    @property
    def staleness_mean(self) -> float | None:
        """The mean staleness of the returned trajectories; None if no staleness is known."""
        measured = self.staleness.total()
        return sum(behind * n for behind, n in self.staleness.items()) / measured if measured else None

    @property
    def staleness_max(self) -> int | None:
        """The highest staleness of the returned trajectories; None if no staleness is known."""
        return max(self.staleness, default=None)
