"""How far the weights that sampled a rollout lie behind those that would train on it."""

from rollout.records.versions import version_number
from rollout.trainer.trajectory import Trajectory


def staleness(trajectory: Trajectory, version: int) -> int | None:
    """How many versions lie between the oldest weights that sampled any of its tokens, and `version`.

    What the engine said of each token counts; where it said nothing, the version that the rollout started with. None
    where no version is named by a number.
    """
    version_names = {span.version for step in trajectory.steps for span in step.versions}
    if any(not step.versions for step in trajectory.steps) and trajectory.started is not None:
        version_names.add(trajectory.started.policy_version)
    numbers = [number for name in version_names if (number := version_number(name)) is not None]
    return max(0, version - min(numbers)) if numbers else None
