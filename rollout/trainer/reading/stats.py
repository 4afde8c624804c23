"""The counters of a reader, and a snapshot of them with what the reader holds."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class ReaderCounters:
    """What a reader did since it was created. The values only grow."""

    trajectories: int = 0
    """Trajectories that were handed out."""
    groups: int = 0
    """Groups that were handed out; `trajectories` counts their members, too."""
    records: int = 0
    """Records that were received."""
    bytes: int = 0
    """Bytes of the records that were received."""
    redelivered: int = 0
    """Records that the queue had delivered before."""
    dropped: int = 0
    """Records that were dropped, because their rollout was consumed or their group was given up."""
    rejected: int = 0
    """Records that could not be decoded."""
    stale: int = 0
    """Trajectories that were dropped because of `ReaderSettings.max_staleness`."""
    held_back: int = 0
    """Trajectories with a score that were handed out and do not train, because of `ReaderSettings.untrained_limits`."""
    partial_groups: int = 0
    """Groups that were given up before they were whole, handed out or dropped."""
    staleness: Counter[int] = field(default_factory=Counter)
    """By staleness in versions: how many trajectories were handed out. Trajectories without a known one are missing."""

    def add_staleness(self, versions_behind: Iterable[int | None]) -> None:
        """Count trajectories by their staleness in versions; None, an unknown one, does not count."""
        self.staleness.update(versions for versions in versions_behind if versions is not None)


@dataclass(kw_only=True)
class ReaderStats(ReaderCounters):
    """A copy of the counters of a reader, with what the reader holds now."""

    unfinished: int
    """Rollouts that have records and are not done."""
    waiting: int
    """Rollouts that are done and were not handed out."""
    unacked: int
    """Records that this reader received and did not ack."""
    bytes_in_memory: int
    """Bytes that the steps of unfinished and waiting rollouts take in memory."""
    bytes_on_disk: int
    """Bytes of those steps that were spilled to disk."""

    @property
    def staleness_mean(self) -> float | None:
        """The mean staleness of the trajectories that were handed out; None if no staleness is known."""
        measured = self.staleness.total()
        return sum(behind * n for behind, n in self.staleness.items()) / measured if measured else None

    @property
    def staleness_max(self) -> int | None:
        """The highest staleness of the trajectories that were handed out; None if no staleness is known."""
        return max(self.staleness, default=None)
