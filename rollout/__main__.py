"""Starts the command line, for `rollout` and for `python -m rollout`."""

import os
import sys
import threading
import time
from contextlib import suppress

_EXIT_TIMEOUT = 10.0
"""Seconds after the end of the command. Then the process ends, even if a thread still runs."""


def main() -> None:
    """Run the command line. If a user's file has the name of a module that we import, the error names the file."""
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
    """End the process after `_EXIT_TIMEOUT` seconds, because Python would wait forever for a thread that hangs."""

    def force_exit() -> None:
        time.sleep(_EXIT_TIMEOUT)
        os._exit(code)

    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    threading.Thread(target=force_exit, name="exit", daemon=True).start()


if __name__ == "__main__":
    # `python -m` searches the current directory first, so a queue.py there would be imported instead of Python's queue.
    # Do not search that directory, except if this package itself is in it: a checkout that is not installed.
    if not sys.flags.safe_path and os.path.dirname(os.path.dirname(os.path.abspath(__file__))) != sys.path[0]:
        del sys.path[0]
    main()
