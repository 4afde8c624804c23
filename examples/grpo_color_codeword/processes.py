"""The processes that the trainer starts: an engine that samples, and a launch with its workers.

They end with the trainer. It stops them when it ends; if it is killed, a reaper kills them.
"""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rollout.errors import RolloutError
from rollout.reaper import ReaperProcess
from rollout.serving.vllm import VllmServer, VllmSettings

_START_TIMEOUT = 120.0
_STOP_TIMEOUT = 60.0
_EXIT_TIMEOUT = 1.0
"""How many seconds to wait for the end of an engine that seems to have failed."""
_VLLM_START_TIMEOUT = 600.0
_VLLM_FLAGS = (
    "--dtype",
    "float32",
    "--logprobs-mode",
    "processed_logprobs",
    "--enforce-eager",
    "--max-model-len",
    "512",
)
_PARENT_POLL_SECONDS = 0.5
_LOG_LINES = 20
_ERROR_LINE = re.compile(r"^rollout: |^Traceback|\bERROR\b|\w(Error|Exception): |\bfailed:")
# Matrices of this size are slower on several cores, and the other processes need the cores.
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class TrainingProcessEnded(RolloutError):
    """A process that training needs has ended or does not work."""


def exit_on_signals() -> None:
    """Let this process stop its children before it ends by Ctrl-C, SIGTERM or SIGHUP."""

    def leave(signum: int, frame: object) -> None:
        sys.stderr.write("stopping the engine, the launch and its workers; a second Ctrl-C kills them\n")
        sys.exit(128 + signum)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, leave)


def end_with_parent() -> None:
    """End this rank if its launcher is killed. torchrun starts each rank in a session of its own."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def log_excerpt(log: Path) -> str:
    """Return the lines of a log from the first error on, or its last lines if it has no error."""
    lines = log.read_text("utf-8", errors="replace").splitlines()
    if not lines:
        return f"{log} is empty."
    first = next((at for at, line in enumerate(lines) if _ERROR_LINE.search(line)), max(0, len(lines) - _LOG_LINES))
    return f"{log} says:\n" + "\n".join(f"  {line}" for line in lines[first : first + _LOG_LINES])


@contextmanager
def transformers_sampler(checkpoint: Path, runs: Path, log: Path) -> Iterator[str]:
    """Run `rollout serve transformers`; yield its root URL."""
    command = ["serve", "transformers", str(checkpoint), "--name", "policy", "--allow", str(runs)]
    with rollout_command(command, log, reads_stdout=True) as process:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], _START_TIMEOUT)[0]:
            raise TrainingProcessEnded(f"the engine was not ready within {_START_TIMEOUT:g} s. {log_excerpt(log)}")
        announced = process.stdout.readline().split()
        if not announced:
            raise TrainingProcessEnded(f"the engine ended while it started. {log_excerpt(log)}")
        try:
            yield announced[-1].decode()
        except TrainingProcessEnded as error:
            # The launch fails first if the engine has ended, so the engine's error explains more.
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(_EXIT_TIMEOUT)
                raise TrainingProcessEnded(f"the engine ended with {code}. {log_excerpt(log)}") from error
            raise


@contextmanager
def vllm_sampler(checkpoint: Path, runs: Path, log: Path, executable: Path | None, *flags: str) -> Iterator[str]:
    """Run vLLM as `rollout serve vllm` starts it; yield its root URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = VllmSettings(
        str(checkpoint), runs, "policy", port=port, executable=executable, flags=(*_VLLM_FLAGS, *flags)
    )
    # By default, vLLM takes almost all memory of the machine for its cache.
    server = VllmServer(settings, log, environment={**_ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": "1"})
    with _reaper() as reaper:
        try:
            server.start()
            assert server.pid is not None
            reaper.add_group(server.pid)
            server.wait_until_ready(_VLLM_START_TIMEOUT, lambda seconds, line: None)
            yield settings.url
        finally:
            server.stop()
        reaper.remove_group(server.pid)


@contextmanager
def running_launch(run: Path, workers: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `rollout launch` for a run that already has its directory."""
    command = ["launch", "--resume", str(run), "--workers", str(workers), *options]
    with rollout_command(command, launch_log(run)) as process:
        yield process


def launch_log(run: Path) -> Path:
    """Return the file that has the output of a run's launch."""
    return run / "launch.out"


@contextmanager
def rollout_command(
    arguments: Sequence[str], log: Path, *, reads_stdout: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a `rollout` command, with its output in a log; see `running_process`."""
    command = [sys.executable, "-m", "rollout", *arguments]
    with log.open("wb") as output:
        with running_process(command, stdout=subprocess.PIPE if reads_stdout else output, stderr=output) as process:
            yield process


@contextmanager
def running_process(
    command: Sequence[str],
    *,
    stdout: IO[bytes] | int | None = None,
    stderr: IO[bytes] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in its own session, so that Ctrl-C reaches only this process, which then stops it.

    `variables` are added to its environment.
    """
    with _reaper() as reaper:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**_ENVIRONMENT, **(variables or {})},
            start_new_session=True,
        )
        try:
            reaper.add_group(process.pid)
            yield process
        finally:
            _stop(process)
        reaper.remove_group(process.pid)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a command; kill it if that takes too long or a second Ctrl-C comes."""
    process.send_signal(signal.SIGTERM)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def _reaper() -> Iterator[ReaperProcess]:
    """Run a process that kills the groups added to it, and not removed, when this block or this process ends."""
    reaper = ReaperProcess()
    try:
        yield reaper
    finally:
        reaper.close()
