"""What can go wrong at the trainer's end, by name."""

from rollout.errors import ConfigurationError, RolloutError


class ReaderStateError(RolloutError):
    """A reader state that cannot be loaded."""


class LeaseLost(RolloutError):
    """Another process leases what this one has read: whoever holds it now reads it again.

    A trainer that was replaced must stop, and save no more. One that knows that it was not (it slept longer than its
    lease, and nobody took over) may go on: what comes again is dropped, and acked with the next commit.
    """


class ImagesUnreadable(RolloutError):
    """The images that a trajectory refers to cannot be read by this process."""


class SpillError(RolloutError):
    """What does not fit into memory does not fit on the disk either."""


class RankError(ConfigurationError):
    """The queue's partitions cannot be shared among so many readers."""


class NothingArrived(RolloutError):
    """No whole group came within the time that a trainer was told to wait."""


class SampleTooLong(RolloutError):
    """A sample has more tokens than a row may have."""


class NoArchive(ConfigurationError):
    """A directory holds no recorded trajectories."""
