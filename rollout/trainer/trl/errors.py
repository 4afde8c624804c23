"""Defines the errors of the trainer for TRL."""

from rollout.errors import ConfigurationError, RolloutError


class UnsupportedConfig(ConfigurationError):
    """The configuration of TRL has a setting that does not fit batches from the queue."""


class WrongCheckpoint(ConfigurationError):
    """A checkpoint was not saved by this trainer, or it is not whole."""


class WrongLogprobs(RolloutError):
    """The log-probs of the engine and of the trainer show that training would learn from wrong data."""
