"""The errors of the trainer's side."""

from rollout.errors import ConfigurationError, RolloutError


class ReaderStateError(RolloutError):
    """A reader cannot load a state."""


class LeaseLost(RolloutError):
    """The lease of some records ended before this process acked them; the next holder reads them again.

    If another process has taken over, this one must stop without saving again. If it only slept longer than its lease,
    it may go on: the reader drops the records that come again, and acks them with the next commit.
    """


class ImagesUnreadable(RolloutError):
    """This process cannot read the images of a trajectory."""


class SpillError(RolloutError):
    """The reader is over its memory limit and cannot write steps to the disk."""


class RankError(ConfigurationError):
    """The queue has fewer partitions than readers, or the rank does not exist."""


class NothingArrived(RolloutError):
    """No whole group came before the timeout."""


class SampleTooLong(RolloutError):
    """A sample has more tokens than fit into a row."""


class NoArchive(ConfigurationError):
    """A directory has no recorded trajectories."""


class RolloutNotFound(ConfigurationError):
    """A run has no rollout with the given name, or several."""
