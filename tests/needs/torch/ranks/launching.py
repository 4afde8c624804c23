"""Starts the ranks of `trainer.py`, waits for them, and reads their logs."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from rollout.trainer.testing import put_all, scripted_rollout
from tests.needs.torch.ranks.trainer import run_rank
from transports import QueueStats, open_queue

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["rollout.trainer.ranks.batches"])  # torch takes seconds to import
_TRAINER = str(Path(__file__).with_name("trainer.py"))
DEADLINE = 100.0


def fill(url: str, groups: int, *, size: int = 2, prefix: str = "", seed: int = 1) -> list[str]:
    """Put groups of very unequal rollouts into a queue; return the ids of the groups."""
    random = np.random.default_rng(seed)
    ids = [f"{prefix}{group:05d}" for group in range(groups)]

    async def put() -> None:
        async with open_queue(url) as queue:
            for name in ids:
                for member in range(size):
                    tokens = 2 + int(random.pareto(1.0) * 8) % 900
                    await put_all(
                        queue,
                        await scripted_rollout(f"{name}.{member}", group_size=size, turns=1, answer_tokens=tokens),
                    )

    anyio.run(put)
    return ids


def stats_of(url: str) -> QueueStats:
    async def ask() -> QueueStats:
        async with open_queue(url) as queue:
            return await queue.stats()

    return anyio.run(ask)


@dataclass
class Launch:
    """The ranks of one launch.

    Attributes:
        lines: the lines of each rank's log.
        codes: the exit code of each rank, None if it did not end; empty under torchrun.
        output: what the ranks printed.
    """

    lines: list[list[dict[str, Any]]]
    codes: list[int | None]
    output: str

    def steps(self, rank: int) -> list[dict[str, Any]]:
        return [line for line in self.lines[rank] if "step" in line]

    def errors(self) -> list[str | None]:
        """The name of the error of each rank; None if it wrote none."""
        return [next((line["error"] for line in lines if "error" in line), None) for lines in self.lines]

    def text(self, rank: int) -> str:
        return next(str(line["text"]) for line in self.lines[rank] if "error" in line)


def torchrun(directory: Path, ranks: int, *, restarts: int = 0, **options: Any) -> Launch:
    """Run the trainer under torchrun until it ends."""
    logs = _new_logs(directory)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    # Without this variable, restarted ranks find the addresses of the dead ones in torchrun's store.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with subprocess.Popen(
        [*command, f"--max-restarts={restarts}", _TRAINER, json.dumps({"logs": str(logs), **options})],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=DEADLINE)
        finally:
            process.terminate()  # torchrun ends its ranks
    return Launch(_read(logs, ranks), [], output)


def launch(directory: Path, ranks: int, *, stopped: int | None = None, **options: Any) -> Launch:
    """Run the ranks without torchrun, which would kill the others when one has died, and wait until they end.

    A rank that stops itself (`stopped`) is killed when all others have ended.
    """
    logs = _new_logs(directory)
    arguments = json.dumps({"logs": str(logs), "store": str(logs / "store"), **options})
    processes = [FORKS.Process(target=run_rank, args=(arguments, rank, ranks)) for rank in range(ranks)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + DEADLINE
    for rank, process in enumerate(processes):
        if rank != stopped:
            process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    output = "".join(file.read_text() for file in sorted(logs.glob("*.output")))
    return Launch(_read(logs, ranks), codes, output)


def _new_logs(directory: Path) -> Path:
    logs = directory / f"logs{len(list(directory.glob('logs*')))}"
    logs.mkdir()
    return logs


def _read(logs: Path, ranks: int) -> list[list[dict[str, Any]]]:
    files = [logs / f"{rank}.jsonl" for rank in range(ranks)]
    return [[json.loads(line) for line in file.read_text().splitlines()] if file.exists() else [] for file in files]
