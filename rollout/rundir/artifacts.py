"""Names the directories of attempts: the files that environments leave for people, such as logs or videos.

artifacts/<environment>/<rollout>/<attempt>/
"""

from pathlib import Path

from rollout.environments.base import ArtifactsUnavailable
from rollout.rundir.file_names import rollout_file_name


def attempt_directory(base: Path, rollout_id: str, attempt: int) -> Path:
    """Return the directory of an attempt's files. It exists only if the environment asked for it.

    Args:
        base: the directory of all artifacts of an environment; see `RunDirectory.artifacts_path`.
        rollout_id: the id of the rollout.
        attempt: the number of the attempt.
    """
    return base / rollout_file_name(rollout_id) / str(attempt)


def create_attempt_directory(base: Path | None, rollout_id: str, attempt: int) -> Path:
    """Create the directory of an attempt's files if it does not exist, and return it.

    Raises:
        ArtifactsUnavailable: there is no `base`, or the directory cannot be created.
    """
    if base is None:
        raise ArtifactsUnavailable(
            "this policy belongs to no run, so model.artifacts_directory() cannot be used; play the rollout with "
            "`rollout run`, `rollout launch` or `rollout.testing.play`."
        )
    directory = attempt_directory(base, rollout_id, attempt)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactsUnavailable(
            f"{directory}: the directory for the files of this attempt cannot be created: {error.strerror}."
        ) from None
    return directory
