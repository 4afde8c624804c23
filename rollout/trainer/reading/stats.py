"""What a reader did, and what it holds."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


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
    redelivered: int
    """Records that had been delivered before."""
    staleness: Mapping[int, int]
    """How many trajectories that were handed out lay how many versions behind, where that is known."""

    @property
    def staleness_mean(self) -> float | None:
        """None before any whose versions and the trainer's are known."""
        measured = sum(self.staleness.values())
        return sum(behind * n for behind, n in self.staleness.items()) / measured if measured else None

    @property
    def staleness_max(self) -> int | None:
        return max(self.staleness, default=None)


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
    redelivered: int = 0
    staleness: Counter[int] = field(default_factory=Counter)

    def add_staleness(self, versions_behind: Iterable[int | None]) -> None:
        self.staleness.update(versions for versions in versions_behind if versions is not None)
