"""Runs the commands that clean up after a program, such as one that removes a container."""

import os
import signal
import subprocess
from collections.abc import Sequence


def run_cleanup(commands: Sequence[Sequence[str]], seconds: float) -> None:
    """Run all commands, each for at most `seconds`. A command that fails does not stop the others."""
    for command in commands:
        try:
            process = subprocess.Popen(  # noqa: S603 - the sandbox made the command
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:  # there is no such command
            continue
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
