"""Launches, runs and trainers as processes, in a private directory."""

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
    """A launch or a run as a process, and its log."""

    process: "subprocess.Popen[str]"
    runs: Path
    ended: dict[int, float] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path | None:
        return next(iter(self.runs.glob("*/launch.json")), self.runs / "?" / "?").parent if self.runs.exists() else None

    def log(self) -> list[dict[str, Any]]:
        path = (self.run_dir or self.runs) / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def done(self) -> list[Path]:
        """Return the outcome file of each rollout that is done."""
        return list(self.runs.glob("*/claims/*/*.done"))

    def live_workers(self) -> list[int]:
        """Return the pids of the workers that are ready and have not ended."""
        log = self.log()
        ends = [entry for entry in log if entry["event"] == "worker ended"]
        self.ended = {entry["pid"]: datetime.fromisoformat(entry["timestamp"]).timestamp() for entry in ends}
        ready = [int(entry["pid"]) for entry in log if entry["event"] == "worker ready"]
        return [pid for pid in ready if pid not in self.ended]

    def report(self, *, code: int = 0, seconds: float) -> dict[str, Any]:
        """Wait for the end of the process, check its exit code, and return its summary."""
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
    """Starts launches, runs and trainers in a private directory, and finds what they left behind."""

    directory: Path
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def launch(
        self, config: Path, settings: Mapping[str, object], *arguments: str, stderr: int = subprocess.PIPE
    ) -> LaunchProcess:
        options = set_options({"run.directory": self.directory / "runs", **settings})
        return self._start(["launch", str(config), *options, *arguments], stderr)

    def resume(self, run_dir: Path, settings: Mapping[str, object], *arguments: str) -> LaunchProcess:
        return self._start(["launch", "--resume", str(run_dir), *set_options(settings), *arguments])

    def run(self, config: Path, settings: Mapping[str, object]) -> LaunchProcess:
        """Start `rollout run`."""
        return self._start(["run", str(config), *set_options({"run.directory": self.directory / "runs", **settings})])

    def _start(self, arguments: list[str], stderr: int = subprocess.PIPE) -> LaunchProcess:
        command = [sys.executable, "-m", "rollout", *arguments, "--json"]
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
        """Return the temporary files that are left: those in TMPDIR, unfinished images and ledgers, sockets."""
        unfinished = ("draft.", ".incoming-", "queue.json.")
        found = [path for path in self.directory.rglob("*") if path.is_socket() or path.name.startswith(unfinished)]
        return [str(path) for path in (*(self.directory / "tmp").iterdir(), *found)]

    def leftover_processes(self) -> list[str]:
        """Return the processes whose command line contains this directory."""
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


def set_options(settings: Mapping[str, object]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def worker_logs(launched: LaunchProcess) -> list[dict[str, Any]]:
    paths = launched.runs.glob("*/workers/*.jsonl")
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]
