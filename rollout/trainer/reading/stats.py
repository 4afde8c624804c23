"""What a reader did, and what it holds."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ReaderStats:
    """The state of a reader. Counts are since the reader was created."""

    trajectories: int
    """Trajectories that were handed out."""
    groups: int
    """Groups that were handed out; their trajectories are also counted above."""
    records: int
    """Records that were received."""
    bytes: int
    """Bytes of the records that were received."""
    dropped: int
    """Records of rollouts that were consumed already, or of groups that were given up."""
    rejected: int
    """Records that cannot be decoded."""
    stale: int
    """Trajectories that were consumed without being handed out, because of max_staleness."""
    held_back: int
    """Trajectories that were handed out with a score and do not train, because of untrained_limits."""
    partial_groups: int
    """Groups that were given up before they were whole, handed out or not."""
    unfinished: int
    """Rollouts that have records and are not done."""
    waiting: int
    """Rollouts that are done and were not handed out."""
    unacked: int
    """Records that were delivered to this reader and are not acked."""
    bytes_in_memory: int
    """Bytes that the steps of unfinished and waiting rollouts take in memory."""
    bytes_on_disk: int
    """Bytes of the steps that were spilled to the disk."""
    redelivered: int
    """Records that had been delivered before."""
    staleness: Mapping[int, int]
    """For each staleness in versions, how many trajectories with it were handed out; unknown ones are not counted."""

    @property
    def staleness_mean(self) -> float | None:
        """The mean staleness of the trajectories that were handed out; None if no staleness is known."""
        measured = sum(self.staleness.values())
        return sum(behind * n for behind, n in self.staleness.items()) / measured if measured else None

    @property
    def staleness_max(self) -> int | None:
        return max(self.staleness, default=None)


@dataclass(slots=True)
class ReaderCounters:
    """The counts of a reader that only grow; `ReaderStats` explains them."""

    trajectories: int = 0
    groups: int = 0
    records: int = 0
    bytes: int = 0
    dropped: int = 0
    rejected: int = 0
    stale: int = 0
    held_back: int = 0
    partial_groups: int = 0
    redelivered: int = 0
    staleness: Counter[int] = field(default_factory=Counter)

    def add_staleness(self, versions_behind: Iterable[int | None]) -> None:
        self.staleness.update(versions for versions in versions_behind if versions is not None)
