"""The processes beside the trainer: an engine that samples, and a launch with its workers."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rollout.errors import RolloutError
from rollout.serving.vllm import VllmServer, VllmSettings

_STOP_TIMEOUT = 60.0
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
# Matrices of this size are slower on several cores, and the other processes need the cores.
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class TrainingProcessEnded(RolloutError):
    """A process that training needs has ended."""


@contextmanager
def transformers_sampler(checkpoint: Path, runs: Path, log: Path) -> Iterator[str]:
    """Run `rollout serve transformers`; yields its root URL."""
    command = ["serve", "transformers", str(checkpoint), "--name", "policy", "--allow", str(runs)]
    with _rollout_command(command, log, reads_stdout=True) as process:
        assert process.stdout is not None
        announced = process.stdout.readline().split()
        if not announced:
            raise TrainingProcessEnded(f"the engine ended while it started; see {log}.")
        yield announced[-1].decode()


@contextmanager
def vllm_sampler(checkpoint: Path, runs: Path, log: Path, executable: Path | None, *flags: str) -> Iterator[str]:
    """Run vLLM as `rollout serve vllm` starts it; yields its root URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = VllmSettings(
        str(checkpoint), runs, "policy", port=port, executable=executable, flags=(*_VLLM_FLAGS, *flags)
    )
    # By itself vLLM would take nearly all of the machine's memory for its cache.
    server = VllmServer(settings, log, environment={**_ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": "1"})
    try:
        server.start()
        server.wait_until_ready(_VLLM_START_TIMEOUT, lambda seconds, line: None)
        yield settings.url
    finally:
        server.stop()


@contextmanager
def running_launch(run: Path, workers: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run `rollout launch` for a run that already has its directory."""
    with _rollout_command(["launch", "--resume", str(run), "--workers", str(workers)], run / "launch.out") as process:
        yield process


@contextmanager
def _rollout_command(
    arguments: Sequence[str], log: Path, *, reads_stdout: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a `rollout` command in its own session. A Ctrl-C reaches only this process, which then stops the command."""
    command = [sys.executable, "-m", "rollout", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if reads_stdout else output,
            stderr=output,
            env=_ENVIRONMENT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
