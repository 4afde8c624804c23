"""Defines the errors of the trainer's side."""

from rollout.errors import ConfigurationError, RolloutError


class ReaderStateError(RolloutError):
    """The reader cannot load a state, because the state is invalid or the reader has already received records."""


class LeaseLost(RolloutError):
    """The lease of some records ended before this process acked them; the queue delivers these records again.

    If another process reads the queue now, this process must stop and must not save again. If this process was only
    paused for longer than its lease, it may continue. Its reader drops the repeated records and acks them at the next
    commit.
    """


class ImagesUnreadable(RolloutError):
    """This process cannot read the images of a trajectory."""


class SpillError(RolloutError):
    """The steps in memory take more than the memory limit, and the reader cannot write them to disk."""


class RankError(ConfigurationError):
    """The queue has fewer partitions than readers, a rank does not exist, or the settings of the ranks do not fit."""


class RankFailed(RolloutError):
    """A rank has failed, has ended, or did not answer in time, so no rank can continue.

    Attributes:
        reason: what has happened.
        rank: the number of the rank in its process group; None if it is not known which rank is at fault.
    """

    def __init__(self, reason: str, *, rank: int | None) -> None:
        self.reason = reason
        self.rank = rank
        where = "" if rank is None else f"rank {rank}: "
        super().__init__(f"{where}{reason} Restart all ranks from the last checkpoint.")


class NothingArrived(RolloutError):
    """No whole group arrived before the timeout."""


class ReadingStalled(RolloutError):
    """The thread that reads the steps hangs, for example in a disk or in the estimator."""


class SampleTooLong(RolloutError):
    """A sample has more tokens than a row of the batch may have."""


class NoArchive(ConfigurationError):
    """The directory does not contain recorded trajectories."""


class RolloutNotFound(ConfigurationError):
    """The run has no rollout with the given name, or several rollouts with this name."""


class EvaluationFailed(RolloutError):
    """An evaluation did not end in time, or it has no result."""
