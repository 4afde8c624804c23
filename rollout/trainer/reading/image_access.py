"""Checks that this process can read the images of trajectories, so that an error comes before the first batch."""

import errno
import logging
import os
import stat
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rollout.records.endings import RolloutStatus
from rollout.trainer.errors import ImagesUnreadable
from rollout.trainer.trajectory import Trajectory

log = logging.getLogger(__name__)

MAX_UNREADABLE = 8
"""Trajectories whose images cannot be read; if there are more, no record is bad, but a directory is missing here."""

# A record names the directory. Non-blocking, so that a named pipe is noticed instead of waited for.
_OPEN_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ImageAccessCheck:
    """Opens one image of each directory that trajectories name, until one of them can be read."""

    def __init__(self) -> None:
        self._readable_directories: set[str] = set()
        self._failed_by_directory: Counter[str] = Counter()

    @property
    def has_read(self) -> bool:
        """Whether any image could be read."""
        return bool(self._readable_directories)

    def problem(self, trajectory: Trajectory) -> str | None:
        """Why the images of a trajectory cannot be read; None if they can, or if there are none."""
        directory = trajectory.started.assets if trajectory.started else ""
        if directory in self._readable_directories:
            return None
        image_names = (item.get("raw_image_id") for item in trajectory.images.values())
        image_name = next((name for name in image_names if name is not None), None)
        if image_name is None:
            return None
        try:
            _read_one_byte(directory, image_name)
        except OSError as error:
            directory_state = (
                "is not there" if not os.path.isdir(directory) else "is there, this image of it is not readable"
            )
            return (
                f"{trajectory.rollout}: this process cannot read {Path(directory, image_name)}: {error.strerror}; the "
                f"directory {directory_state}. Mount the run's image directory under the same path here as on the "
                "workers, or let the workers send images in the messages (images.mode: inline)."
            )
        self._readable_directories.add(directory)
        return None

    def fail(self, trajectory: Trajectory, problem: str) -> Trajectory:
        """The trajectory as a failed one, because its images cannot be read and those of others can.

        Raises:
            ImagesUnreadable: too many trajectories name this directory for one bad record.
        """
        assert trajectory.started is not None
        directory = trajectory.started.assets
        if self._failed_by_directory[directory] >= MAX_UNREADABLE:
            raise ImagesUnreadable(problem)
        self._failed_by_directory[directory] += 1
        log.warning("%s", problem)
        error = {"type": ImagesUnreadable.__name__, "message": problem}
        return replace(trajectory, status=RolloutStatus.FAILED, reward=None, error=error)


def _read_one_byte(directory: str, image_name: str) -> None:
    directory_fd = os.open(directory, _OPEN_DIRECTORY_FLAGS)
    try:
        fd = os.open(image_name, _OPEN_FILE_FLAGS, dir_fd=directory_fd)
    finally:
        os.close(directory_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file")
        os.pread(fd, 1, 0)
    finally:
        os.close(fd)
