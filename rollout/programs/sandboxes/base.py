"""Defines the contract of a sandbox."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from rollout.errors import ConfigurationError
from rollout.programs.workspace import ProgramDirectories, Workspace


class SandboxMissing(ConfigurationError):
    """The sandbox cannot be used on this machine; the error says what to install or to change."""


class SandboxOptions(BaseModel):
    """The keys of `environment.sandbox` in the YAML. Subclass it to add keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = "none"
    """The name of the sandbox."""


@dataclass(frozen=True, slots=True)
class SandboxedCommand:
    """A command that runs in a sandbox.

    Attributes:
        argv: the program and its arguments.
        environ: all its environment variables; they may contain the key, so they must not become arguments.
        workspace: the directories that it may write. It runs in the work directory.
        gateway_socket: the unix socket of the gateway; None if the command must not reach the gateway.
        memory_bytes: the limit for memory; only for sandboxes outside of our cgroup, such as containers.
        processes: the limit for processes, for the same sandboxes.
        read: files and directories of the user that the command names; it may read them.
    """

    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    workspace: Workspace
    gateway_socket: Path | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    read: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class WrappedCommand:
    """The command that starts the sandbox with the command inside.

    It ends with the exit code of the command inside, or with 128 + the number of the signal that ended that command.
    Signals to its process group reach the command.

    Attributes:
        argv: the program and its arguments.
        environ: all its environment variables.
        cleanup: commands to run when it has ended.
    """

    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    cleanup: tuple[tuple[str, ...], ...] = ()


class Sandbox(abc.ABC):
    """A place where programs run.

    Attributes:
        Options: the class of `environment.sandbox` in the YAML.
        options: its values.
        uses_socket: whether programs reach the gateway through its unix socket, at `gateway_address` inside.
        gateway_address: the HOST:PORT of the gateway as programs see it; None: that of the section `gateway`.
        signals_are_codes: whether a program that the signal n ended has the exit code 128 + n.
        root_inside: the root of each workspace as programs see it; None: the path is the same inside. One path for all
            makes the prompts of a group equal, because many agents write their directory into the prompt.
    """

    Options: ClassVar[type[SandboxOptions]] = SandboxOptions
    uses_socket: ClassVar[bool] = False
    gateway_address: ClassVar[str | None] = None
    root_inside: ClassVar[Path | None] = None
    signals_are_codes: ClassVar[bool] = False

    def __init__(self, options: SandboxOptions) -> None:
        self.options = options

    def directories(self, workspace: Workspace) -> ProgramDirectories:
        """Return the directories of a workspace as programs see them."""
        return ProgramDirectories(self.root_inside or workspace.root)

    @abc.abstractmethod
    def check(self) -> str:
        """Return what this machine has, such as `bwrap 0.8.0`.

        Raises:
            SandboxMissing: it cannot be used here.
        """

    def check_address(self, address: str) -> None:  # noqa: B027 - most sandboxes need nothing
        """Check that programs inside can reach the gateway at an address, as far as the address says.

        Args:
            address: the HOST:PORT that programs get.

        Raises:
            ConfigurationError: they cannot; the error says what to set.
        """

    @abc.abstractmethod
    def find_program(self, name: str) -> str | None:
        """Return the path of a program inside the sandbox; None if it is not there, the name itself if unknown."""

    @abc.abstractmethod
    def wrap(self, command: SandboxedCommand) -> WrappedCommand:
        """Return the command that starts the sandbox with the command inside."""

    def describe_start_failure(self, exit_code: int, output: str) -> str | None:
        """Return why the sandbox could not start the command inside; None if it started.

        Args:
            exit_code: the exit code of the wrapped command.
            output: what it printed, or the end of that.
        """
        return None
