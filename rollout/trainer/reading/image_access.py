"""Checks that this process can read the images of trajectories, so that an error comes before the first batch."""

import os
from pathlib import Path

from rollout.trainer.errors import ImagesUnreadable
from rollout.trainer.trajectory import Trajectory


class ImageAccessCheck:
    """Reads one image of each directory that trajectories name, the first time that it is named."""

    def __init__(self) -> None:
        self._checked_directories: set[str] = set()

    def require_readable(self, trajectory: Trajectory) -> None:
        """Raises ImagesUnreadable if an image in a directory that was not checked before cannot be read."""
        directory = trajectory.started.assets if trajectory.started else ""
        if directory in self._checked_directories:
            return
        image_names = (item.get("raw_image_id") for item in trajectory.images.values())
        image_name = next((name for name in image_names if name is not None), None)
        if image_name is None:
            return
        path = Path(directory, image_name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.pread(fd, 1, 0)
            finally:
                os.close(fd)
        except OSError as error:
            directory_state = (
                "is not there" if not os.path.isdir(directory) else "is there, this image of it is not readable"
            )
            raise ImagesUnreadable(
                f"{trajectory.rollout}: this process cannot read {path}: {error.strerror}; the directory "
                f"{directory_state}. Mount the run's image directory under the same path here as on the workers, or "
                "let the workers send images in the messages (images.mode: inline)."
            ) from error
        self._checked_directories.add(directory)
