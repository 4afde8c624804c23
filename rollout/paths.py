"""Paths that a user wrote."""

from pathlib import Path

from rollout.errors import ConfigurationError


class PathUnusable(ConfigurationError):
    """What a user wrote as a path can be none.

    Attributes:
        reason: why, without the path.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{str(path)[:200]}: {reason}.")
        self.reason = reason


def resolve_path(path: Path, directory: Path | None = None) -> Path:
    """Return an absolute path without links; a relative one is relative to `directory`, or else to the current one.

    Raises:
        PathUnusable: a link leads to itself, or a name is too long.
    """
    try:
        return (path if directory is None else directory / path).resolve()
    except RuntimeError:
        raise PathUnusable(path, "this is no usable path: a symbolic link leads back to itself") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PathUnusable(path, f"this is no usable path: {reason}") from None


def expand_home(path: Path) -> Path:
    """Return a path with the home directory in place of ~. Raises PathUnusable if there is none."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise PathUnusable(path, "the home directory for ~ is not known") from None
