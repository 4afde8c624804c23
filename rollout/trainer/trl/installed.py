"""Checks that TRL is installed in a version that `RolloutGRPOTrainer` knows."""

from importlib.metadata import PackageNotFoundError, version

from rollout.errors import ConfigurationError

KNOWN_VERSION = "1.16"
"""The minor version of TRL. Another one may read other keys, or call other methods of the trainer."""


def require_trl() -> None:
    """Raise ConfigurationError if TRL is not installed, or has another minor version."""
    try:
        found = version("trl")
    except PackageNotFoundError as error:
        raise ConfigurationError(
            "rollout.trainer.trl needs TRL, which is not installed. Install it: pip install 'rollout-rl[trl]'"
        ) from error
    if found.split(".")[:2] != KNOWN_VERSION.split("."):
        raise ConfigurationError(
            f"rollout.trainer.trl works with TRL {KNOWN_VERSION}, but {found} is installed. Install the version that "
            "fits: pip install 'rollout-rl[trl]'"
        )
