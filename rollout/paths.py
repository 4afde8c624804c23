"""Resolves paths that a user wrote."""

from pathlib import Path

from rollout.errors import ConfigurationError


class PathUnusable(ConfigurationError):
    """A path that a user wrote is not usable.

    Attributes:
        reason: why the path is not usable; it does not contain the path.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{str(path)[:200]}: {reason}.")
        self.reason = reason


def resolve_path(path: Path, directory: Path | None = None) -> Path:
    """Return the absolute path without symbolic links; a relative path starts at `directory`, or at the current one.

    Raises:
        PathUnusable: a symbolic link leads back to itself, or a name is too long.
    """
    try:
        return (path if directory is None else directory / path).resolve()
    except RuntimeError:
        raise PathUnusable(path, "this is not a usable path: a symbolic link leads back to itself") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PathUnusable(path, f"this is not a usable path: {reason}") from None


def expand_home(path: Path) -> Path:
    """Return a path with the home directory in place of ~. Raises PathUnusable if the home directory is not known."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise PathUnusable(path, "the home directory for ~ is not known") from None
