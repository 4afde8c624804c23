"""The directories that exist for one program alone: its work directory, its home, and its directory of temporary files.

    workspace = Workspace.create()
    copy_tree(template, workspace.work)
    ...
    workspace.remove()

All functions block, so call them in a thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rollout.errors import RolloutError

PREFIX = "rollout-program-"
"""The beginning of the names of all workspaces in the system's directory of temporary files."""
VARIABLE = "ROLLOUT_WORKSPACE"
"""The environment variable by which the processes of a program are recognised; its value is the path of the root."""


class WorkspaceError(RolloutError):
    """A file of a program cannot be written into its workspace, or a template cannot be copied."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """The directories of one program. Only the user of the worker can enter them.

    Attributes:
        root: the directory with all others.
    """

    root: Path

    @classmethod
    def create(cls) -> Self:
        """Create new, empty directories."""
        raise NotImplementedError

    @property
    def work(self) -> Path:
        """The working directory of the program."""
        return self.root / "work"

    @property
    def home(self) -> Path:
        """The home of the program."""
        return self.root / "home"

    @property
    def tmp(self) -> Path:
        """The directory for the temporary files of the program."""
        return self.root / "tmp"

    @property
    def gateway_directory(self) -> Path:
        """The directory with nothing but the unix socket of the gateway; a sandbox can mount it."""
        return self.root / "gateway"

    @property
    def gateway_socket(self) -> Path:
        """The unix socket at which the gateway listens for this program alone."""
        return self.gateway_directory / "socket"

    def environ(self) -> Mapping[str, str]:
        """Return the variables that name the directories: HOME, TMPDIR, the XDG directories, and `VARIABLE`."""
        raise NotImplementedError

    def remove(self) -> None:
        """Remove all directories, also those that the program made unreadable. Do nothing if they are gone."""
        raise NotImplementedError


def copy_tree(source: Path, target: Path) -> None:
    """Copy what is in a directory into another one. Never write through a symbolic link of the target.

    Raises:
        WorkspaceError: the source is no directory, or cannot be copied.
    """
    raise NotImplementedError


def write_files(files: Mapping[str, str], target: Path) -> None:
    """Write text files below a directory; the names are relative paths. Never write through a symbolic link.

    Raises:
        WorkspaceError: a name leads out of the directory, or a file cannot be written.
    """
    raise NotImplementedError


def keep_files(source: Path, target: Path, patterns: Sequence[str], *, max_bytes: int) -> str | None:
    """Copy the files that match a pattern, without keys; return what was left out because of the limit, or None.

    Symbolic links, sockets and devices are not followed or copied.
    """
    raise NotImplementedError


def remove_abandoned() -> int:
    """Remove the workspaces of processes that have died, and kill what still runs in them; return their number."""
    raise NotImplementedError
