"""Holds back rollouts that a limit in `ReaderSettings.untrained_limits` stopped, so that they do not train."""

from collections.abc import Iterable, Set
from dataclasses import replace

from rollout.errors import ConfigurationError
from rollout.records.endings import RolloutLimit
from rollout.trainer.trajectory import Trajectory


def limits_named(names: Iterable[RolloutLimit | str]) -> frozenset[RolloutLimit]:
    """Return the limits with these names.

    Raises:
        ConfigurationError: one of the names is not the name of a limit.
    """
    limits = {limit.value: limit for limit in RolloutLimit if limit is not RolloutLimit.NONE}
    expected = f"untrained_limits: expected a set of {', '.join(limits)}, such as frozenset({{'tokens'}})"
    if isinstance(names, str):
        raise ConfigurationError(f"{expected}; found the string {names!r}.")
    if unknown := [name for name in names if name not in limits]:
        raise ConfigurationError(f"{expected}; {unknown[0]!r} is not a limit.")
    return frozenset(limits[name] for name in names)


def hold_back(trajectory: Trajectory, untrained_limits: Set[RolloutLimit | str]) -> Trajectory:
    """Return the trajectory. It is marked as held back if it would train and one of these limits stopped it."""
    is_held_back = trajectory.trainable and trajectory.limit in untrained_limits
    return replace(trajectory, held_back=True) if is_held_back else trajectory
