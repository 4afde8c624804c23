"""Computes the staleness of a rollout: how many versions its weights are behind the trainer's weights."""

from rollout.records.versions import version_number
from rollout.trainer.trajectory import Trajectory


def staleness(trajectory: Trajectory, version: int) -> int | None:
    """Return how many versions the oldest weights that sampled a token of the trajectory are behind `version`.

    Engines report the version for each token. For a turn without this report, the version at the start of the rollout
    counts. The result is None if no version name contains a number.
    """
    version_names = {span.version for step in trajectory.steps for span in step.versions}
    if any(not step.versions for step in trajectory.steps) and trajectory.started is not None:
        version_names.add(trajectory.started.policy_version)
    numbers = [number for name in version_names if (number := version_number(name)) is not None]
    return max(0, version - min(numbers)) if numbers else None
