"""Launches and trainers as processes, in a private directory, and what is left of them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass
class LaunchProcess:
    """A launch as a process, and what its log says."""

    process: "subprocess.Popen[str]"
    runs: Path
    ended: dict[int, float] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path | None:
        return next(iter(self.runs.glob("*/launch.json")), self.runs / "?" / "?").parent if self.runs.exists() else None

    def log(self) -> list[dict[str, Any]]:
        path = (self.run_dir or self.runs) / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def live_workers(self) -> list[int]:
        """Workers that are ready and were not seen to end."""
        log = self.log()
        ends = [entry for entry in log if entry["event"] == "worker ended"]
        self.ended = {entry["pid"]: datetime.fromisoformat(entry["timestamp"]).timestamp() for entry in ends}
        ready = [int(entry["pid"]) for entry in log if entry["event"] == "worker ready"]
        return [pid for pid in ready if pid not in self.ended]

    def report(self, *, code: int = 0, seconds: float) -> dict[str, Any]:
        """What it says at its end, which comes within so many seconds and with that exit code."""
        out, err = self.process.communicate(timeout=seconds)
        assert self.process.returncode == code, err[-3000:]
        summary: dict[str, Any] = json.loads(out)
        return summary

    def wait_until(self, holds: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.log()[-5:]
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)


@dataclass
class LaunchHarness:
    """Starts launches and trainers in a private directory, and sees that nothing of them is left."""

    directory: Path
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def launch(
        self, config: Path, settings: Mapping[str, object], *arguments: str, stderr: int = subprocess.PIPE
    ) -> LaunchProcess:
        options = _set_options({"run.directory": self.directory / "runs", **settings})
        return self._start_launch([str(config), *options, *arguments], stderr)

    def resume(self, run_dir: Path, settings: Mapping[str, object], *arguments: str) -> LaunchProcess:
        return self._start_launch(["--resume", str(run_dir), *_set_options(settings), *arguments])

    def _start_launch(self, what: list[str], stderr: int = subprocess.PIPE) -> LaunchProcess:
        command = [sys.executable, "-m", "rollout", "launch", *what, "--json"]
        temporary = self.directory / "tmp"
        temporary.mkdir(exist_ok=True)
        env = {**os.environ, "TMPDIR": str(temporary)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env)
        self.processes.append(process)
        return LaunchProcess(process, self.directory / "runs")

    def train(self, url: str, checkpoint: Path) -> "subprocess.Popen[str]":
        script = Path(__file__).parent / "trainer_peer.py"
        process = subprocess.Popen([sys.executable, str(script), url, str(checkpoint)], text=True)
        self.processes.append(process)
        return process

    def temporary_files(self) -> list[str]:
        """Files that nobody needs any more: in the system's place for them, unfinished images and ledgers, sockets."""
        unfinished = ("draft.", ".incoming-", "queue.json.")
        found = [path for path in self.directory.rglob("*") if path.is_socket() or path.name.startswith(unfinished)]
        return [str(path) for path in (*(self.directory / "tmp").iterdir(), *found)]

    def leftover_processes(self) -> list[str]:
        """Processes that mention this directory."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if str(self.directory) in command:
                    found.append(f"{entry.name} {command}")
        return found


def _set_options(settings: Mapping[str, object]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def worker_logs(launched: LaunchProcess) -> list[dict[str, Any]]:
    paths = launched.runs.glob("*/workers/*.jsonl")
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]
