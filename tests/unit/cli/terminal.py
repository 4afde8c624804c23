"""The command line in a process whose stdout, stderr or both are a terminal of 80 columns."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

WIDTH = 80
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Shown:
    """The result of a process.

    Attributes:
        returncode: its exit code.
        terminal: what it wrote to the terminal.
        piped: what it wrote to the other of stdout and stderr; empty if both are the terminal.
    """

    returncode: int
    terminal: str
    piped: str


def run_in_terminal(
    *arguments: str, terminal: Literal["stdout", "stderr", "both"] = "both", variables: Mapping[str, str] | None = None
) -> Shown:
    """Run `rollout` with these arguments, and with these variables added to our environment."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    written: list[bytes] = []
    reader = threading.Thread(target=_read, args=(ours, written))
    reader.start()
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "rollout", *arguments],
        stdout=subprocess.PIPE if terminal == "stderr" else theirs,
        stderr=subprocess.PIPE if terminal == "stdout" else theirs,
        env={**environment, "TERM": "xterm-256color", **(variables or {})},
    )
    os.close(theirs)
    try:
        out, err = process.communicate(timeout=_TIMEOUT_SECONDS)
    finally:
        process.kill()
        process.wait()
        reader.join(_TIMEOUT_SECONDS)
        os.close(ours)
    return Shown(process.returncode, b"".join(written).decode().replace("\r\n", "\n"), (out or err or b"").decode())


def _read(descriptor: int, written: list[bytes]) -> None:
    try:
        while data := os.read(descriptor, 1 << 16):
            written.append(data)
    except OSError:  # the last process with this terminal has ended
        return
