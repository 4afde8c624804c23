"""The interface of an image, from a Docker daemon or from a bare root."""

import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class Started(Protocol):
    """A container that runs."""

    def ended(self) -> bool:
        """Return whether its first process has ended."""

    def terminate(self) -> tuple[int, str]:
        """Send SIGTERM to its first process, and return its exit code and all that it printed."""


class Image(Protocol):
    """Starts containers. `shared` is a directory that is mounted at the same path and is the working directory."""

    def run(
        self, *words: str, entrypoint: str | None = None, user: str | None = None, shared: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a container to its end."""

    def start(self, *words: str, shared: Path) -> AbstractContextManager[Started]:
        """Start a container, and remove it at the end."""
