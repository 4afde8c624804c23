"""The command line as a function: for what a user is told, where it takes no process of its own to find out."""

import asyncio
import io
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

import structlog

from rollout.cli import main


def run_cli(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """What a `rollout` process with these arguments would have ended with."""
    out, err = io.StringIO(), io.StringIO()
    code = 0

    def call() -> None:
        nonlocal code
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)

    with mock.patch.object(sys, "argv", ["rollout", *arguments]), redirect_stdout(out), redirect_stderr(err):
        if _a_loop_runs():  # a command has a loop of its own, and no thread has two
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        else:
            call()
    structlog.reset_defaults()
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def _a_loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
