"""What the kernel says of processes that tests have started, or whose children those have."""

import os
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path


def process_state(pid: int) -> str | None:
    """One letter, as ps says it; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def lives(pid: int) -> bool:
    """Whether it is there, and not only because nobody has asked how it ended."""
    return process_state(pid) not in (None, "Z")


class MarkedProcesses:
    """Processes that are started with a variable of their own, which whatever they start inherits."""

    def __init__(self) -> None:
        self._variable, self._value = "ROLLOUT_TEST_MARK", uuid.uuid4().hex

    @property
    def environment(self) -> Mapping[str, str]:
        """What to start the first one with."""
        return {**os.environ, self._variable: self._value}

    def pids(self) -> list[int]:
        """Those that live."""
        setting = f"{self._variable}={self._value}".encode()
        every = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in every if setting in _variables(pid) and lives(pid)]

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
