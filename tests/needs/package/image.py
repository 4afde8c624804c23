"""An image, whoever made it: a Docker daemon, or this machine in a bare root."""

import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class Started(Protocol):
    """A container that runs."""

    def ended(self) -> bool:
        """Return whether its first process has ended by itself."""

    def terminate(self) -> tuple[int, str]:
        """Send SIGTERM to its first process, and return its exit code and all that it printed."""


class Image(Protocol):
    """Starts containers. `shared` is a directory that a container sees under the same path, and in which it starts."""

    def run(
        self, *words: str, entrypoint: str | None = None, user: str | None = None, shared: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a container to its end."""

    def start(self, *words: str, shared: Path) -> AbstractContextManager[Started]:
        """Start a container that is gone in the end."""
