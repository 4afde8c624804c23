"""The start of `rollout`, which is also `python -m rollout`."""

import os
import sys
import threading
import time
from contextlib import suppress

_EXIT_TIMEOUT = 10.0
"""Seconds in which the process must end after its command is done."""


def main() -> None:
    """Run the command line. An error on its way there says whose file took the place of one of Python's or ours."""
    from rollout.import_path import describe_conflict

    try:
        from rollout.cli import main as run_command
    except Exception as error:
        conflict = describe_conflict(error)
        if conflict is None:
            raise
        sys.stderr.write(f"rollout: {type(error).__name__}: {error}: {conflict}.\n")
        sys.exit(2)
    try:
        run_command()
    except SystemExit as ended:
        _force_exit_later(ended.code if isinstance(ended.code, int) else 1)
        raise


def _force_exit_later(code: int) -> None:
    """End the process even if a thread of an environment does not end, for which Python would wait for ever."""

    def force_exit() -> None:
        time.sleep(_EXIT_TIMEOUT)
        os._exit(code)

    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    threading.Thread(target=force_exit, name="exit", daemon=True).start()


if __name__ == "__main__":
    # `python -m` looks into the current directory first, where a queue.py would take the place of Python's. The command
    # `rollout` does not. A checkout that is not installed is left alone.
    if not sys.flags.safe_path and os.path.dirname(os.path.dirname(os.path.abspath(__file__))) != sys.path[0]:
        del sys.path[0]
    main()
