"""The command line in this process, for tests that need no process of their own."""

import asyncio
import io
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

import structlog

from rollout.cli import main


def set_options(*settings: str) -> list[str]:
    """Return these settings as options of the command line."""
    return [part for setting in settings for part in ("--set", setting)]


def run_cli(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `rollout` with these arguments; return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    code = 0

    def call() -> None:
        nonlocal code
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)

    with mock.patch.object(sys, "argv", ["rollout", *arguments]), redirect_stdout(out), redirect_stderr(err):
        if _has_running_loop():  # a command starts a loop, and a thread can run only one
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        else:
            call()
    structlog.reset_defaults()
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def _has_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
