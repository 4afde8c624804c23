"""Defines the settings of a reader."""

from dataclasses import dataclass, field
from pathlib import Path

from rollout.records.endings import RolloutLimit
from rollout.trainer.reading.groups import GroupPolicy
from rollout.trainer.reading.held_back import limits_named


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """Says how a reader treats late, large, incomplete or stale data.

    Timeouts count only the time in which the reader waits for records, so a long training step does not matter.

    Raises:
        ConfigurationError: `untrained_limits` contains an unknown name.
    """

    gap_timeout: float = 30.0
    """Seconds to wait for missing records when an attempt's finished record is there; then the rollout fails."""
    unfinished_timeout: float = 7200.0
    """Seconds to wait for the next record while an attempt's finished record is missing; then the rollout fails."""
    memory_limit: int = 1 << 30
    """The maximum bytes of steps in memory, as frames and decoded. Above it, the reader spills steps to disk."""
    spill_directory: Path | str | None = None
    """The directory for spilled steps; None: the system's directory for temporary files."""
    groups: GroupPolicy = field(default_factory=GroupPolicy)
    """What happens to groups that are not whole when their timeout has passed."""
    max_staleness: int | None = None
    """Drop a group if one of its trajectories is more than this many versions behind `TrajectoryReader.version`; None:
    drop no group for its staleness."""
    require_images: bool = True
    """Whether to check that a trajectory's images can be read before the trainer gets the trajectory."""
    untrained_limits: frozenset[RolloutLimit | str] = frozenset()
    """Limits, or their names. A rollout that was stopped by one of these does not train, even if it has a score."""
    train_auxiliary_roots: bool = False
    """Whether the turns of auxiliary roots train, such as those for a title or a summary; see `RootKind`."""
    train_constrained_turns: bool = True
    """Whether turns train whose request changed the distribution of the answer; see `Step.constrained`."""
    wait_for_more: bool = False
    """Whether to wait for another launch when every launch that wrote to the queue has ended."""
    given_up_runs: frozenset[str] = frozenset()
    """The ids of runs that were killed and that nobody will resume. The reader does not wait for their end."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "untrained_limits", limits_named(self.untrained_limits))
