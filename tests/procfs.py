"""What /proc says about the processes that a test started, and about their children."""

import os
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path


def process_state(pid: int) -> str | None:
    """Return the state as one letter, as in ps, or None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    return process_state(pid) not in (None, "Z")


class MarkedProcesses:
    """Processes that have a variable in their environment, which their children inherit."""

    def __init__(self) -> None:
        self._variable, self._value = "ROLLOUT_TEST_MARK", uuid.uuid4().hex

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment for the first process."""
        return {**os.environ, self._variable: self._value}

    def pids(self) -> list[int]:
        """Return the pids of the processes that are alive."""
        setting = f"{self._variable}={self._value}".encode()
        every = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in every if setting in _variables(pid) and is_alive(pid)]

    def wait_until_gone(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while left := self.pids():
            assert time.monotonic() < deadline, f"processes {left} are left"
            time.sleep(0.05)

    def kill(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)


def _variables(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
