"""What a reader did, and what it holds."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReaderStats:
    """Counts are since the reader was made."""

    trajectories: int
    """Handed out."""
    groups: int
    """Handed out; the trajectories in them are among those above."""
    records: int
    bytes: int
    dropped: int
    """Records of what was consumed already, or of a group that was given up."""
    rejected: int
    """Records that cannot be decoded."""
    stale: int
    """Trajectories that were consumed without being handed out, because of max_staleness."""
    partial_groups: int
    """Groups that were given up before they were whole, handed out or not."""
    unfinished: int
    """Rollouts of which something has come, and not the end."""
    waiting: int
    """Trajectories that are whole and were not handed out."""
    unacked: int
    """Records that the queue still holds for this reader."""
    bytes_in_memory: int
    """Of the steps of both."""
    bytes_on_disk: int
    staleness_mean: float | None
    """Of the trajectories handed out; None before any whose versions and the trainer's are known."""
    staleness_max: int | None


@dataclass(slots=True)
class ReaderCounters:
    """What only ever grows."""

    trajectories: int = 0
    groups: int = 0
    records: int = 0
    bytes: int = 0
    dropped: int = 0
    rejected: int = 0
    stale: int = 0
    partial_groups: int = 0
    measured: int = 0
    staleness_sum: int = 0
    staleness_max: int | None = None

    def measure(self, found: Iterable[int | None]) -> None:
        for versions in found:
            if versions is not None:
                self.measured += 1
                self.staleness_sum += versions
                self.staleness_max = max(versions, self.staleness_max or 0)
