"""Kills the processes that a supervisor started, if the supervisor itself was killed.

The supervisor writes one line for each process group: `+123` when the group starts, `-123` when it has ended. When the
supervisor ends, for any reason, its end of the pipe closes. Then every remaining group gets SIGKILL: the workers, and
the processes that their environments started. The command is `python -P -m rollout.launch.reaper`. This module imports
only the standard library.
"""

import os
import signal
import sys


def kill_leftover_groups() -> None:
    """Read lines until the supervisor ends, and then kill the process groups that have not ended."""
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
