"""Checks that this process can read the images of trajectories, to find a missing mount at the start of training."""

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
"""The maximum number of trajectories with unreadable images. If there are more, the directory is probably missing."""

# O_NONBLOCK, because the path comes from a record. If it is a named pipe, opening it would otherwise block.
_OPEN_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ImageAccessCheck:
    """Checks the images of trajectories. When it has read one image of a directory, it trusts this directory."""

    def __init__(self) -> None:
        self._readable_directories: set[str] = set()
        self._failed_by_directory: Counter[str] = Counter()

    @property
    def has_read(self) -> bool:
        """Whether this process has read at least one image."""
        return bool(self._readable_directories)

    def problem(self, trajectory: Trajectory) -> str | None:
        """Return why this process cannot read a trajectory's images; None if it can, or if there are no image files."""
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
            missing = "" if os.path.isdir(directory) else " (the directory does not exist here)"
            return (
                f"{trajectory.rollout}: this process cannot read {Path(directory, image_name)}: "
                f"{error.strerror}{missing}. Mount the run's image directory under the same path as on the workers, "
                "or send the images in the messages (images.mode: inline)."
            )
        self._readable_directories.add(directory)
        return None

    def fail(self, trajectory: Trajectory, problem: str) -> Trajectory:
        """Return the trajectory as failed. Call it if other images can be read, but not those of this trajectory.

        Raises:
            ImagesUnreadable: `MAX_UNREADABLE` trajectories of this directory have already failed.
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
    """Read one byte of an image file; raise OSError if that fails."""
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
