"""Kills the processes that a program started, if the program itself was killed.

    reaper = ReaperProcess()
    reaper.add_group(process.pid)       # the process leads its own group
    ...
    reaper.remove_group(process.pid)    # it has ended
    reaper.close()

The reaper is a small process. Its program writes one line for each process group: `+123` when the group starts, `-123`
when it has ended. When the program ends, for any reason, its end of the pipe closes. Then every remaining group gets
SIGKILL. The command is `python -P -m rollout.reaper`. This module imports only the standard library.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress


class ReaperProcess:
    """Starts the process that kills process groups if this process is killed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rollout.reaper"], stdin=subprocess.PIPE, start_new_session=True
        )

    def add_group(self, group: int) -> None:
        """Make the reaper kill this process group if our process is killed."""
        self._write_line(f"+{group}\n")

    def remove_group(self, group: int) -> None:
        """Make the reaper forget a process group that has ended."""
        self._write_line(f"-{group}\n")

    def close(self) -> None:
        """End the reaper process. It first kills the groups that were not removed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _write_line(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # workers also notice by themselves that their supervisor is gone
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def kill_leftover_groups() -> None:
    """Read lines until the program ends, and then kill the process groups that have not ended."""
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    kill_leftover_groups()
