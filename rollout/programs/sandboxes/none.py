"""No sandbox: a program runs with the rights of the worker."""

import shutil

from rollout.programs.sandboxes.base import Sandbox, SandboxedCommand, WrappedCommand


class NoSandbox(Sandbox):
    """Runs programs as they are. Use it for programs that you trust."""

    def check(self) -> str:
        """Return what a program may do."""
        return "no sandbox: a program has all rights of the worker, and can read and change the files of its user"

    def find_program(self, name: str) -> str | None:
        """Return the path of a program on this machine. A relative path belongs to the working directory."""
        if "/" in name and not name.startswith("/"):
            return name
        return shutil.which(name)

    def wrap(self, command: SandboxedCommand) -> WrappedCommand:
        """Return the command itself."""
        return WrappedCommand(argv=command.argv, environ=command.environ)
