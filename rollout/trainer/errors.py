"""The errors of the trainer's side."""

from rollout.errors import ConfigurationError, RolloutError


class ReaderStateError(RolloutError):
    """A reader state that cannot be loaded."""


class LeaseLost(RolloutError):
    """The lease of records that this process has read has ended; the next holder reads them again.

    A trainer that was replaced must stop, and save no more. If no other process took over (it only slept longer than
    its lease), it may go on: records that come again are dropped, and acked with the next commit.
    """


class ImagesUnreadable(RolloutError):
    """The images that a trajectory refers to cannot be read by this process."""


class SpillError(RolloutError):
    """Steps that are over the memory limit cannot be written to the disk."""


class RankError(ConfigurationError):
    """The queue's partitions cannot be shared among so many readers."""


class NothingArrived(RolloutError):
    """No whole group came within the time-out."""


class SampleTooLong(RolloutError):
    """A sample has more tokens than a row may have."""


class NoArchive(ConfigurationError):
    """A directory holds no recorded trajectories."""


class RolloutNotFound(ConfigurationError):
    """A run has no rollout of a name, or several of it."""
