"""Outlives a supervisor that was killed, by just long enough to kill what it had started.

The supervisor tells it each process group, one a line: `+123` when it was started, `-123` when it has ended. When the
supervisor is gone, for whatever reason, its end of the pipe closes, and every group that is left gets SIGKILL: workers,
whatever their environments had started, stuck or not. The process is `python -m rollout.launch.reaper`; it imports
nothing.
"""

import os
import signal
import sys


def kill_leftover_groups() -> None:
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
