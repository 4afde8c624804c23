"""Kills the processes that a supervisor started, if the supervisor itself was killed.

The supervisor writes one line for each process group: `+123` when it starts, `-123` when it has ended. When the
supervisor is gone, for any reason, its end of the pipe closes. Then every group that is left gets SIGKILL: workers and
what their environments started. The process is `python -P -m rollout.launch.reaper`; it imports only the standard
library.
"""

import os
import signal
import sys


def kill_leftover_groups() -> None:
    """Read lines until the supervisor is gone, and kill the process groups that are left."""
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
