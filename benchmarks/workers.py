"""Measures the turns per second of one and of two worker processes, and what a worker's CPU time is used for.

    python -m benchmarks.workers [--rollouts 200] [--turns 8]

The engine is the embedded one in its own process, which shares the machine's cores with the workers. The CPU time of
each side is printed with the rate, so that you see which side is the bottleneck.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import anyio

from rollout.config.load import Config, load_config
from rollout.log import log_to_json_file
from rollout.metrics.worker import WorkerMetrics
from rollout.rundir.claims import Claims
from rollout.rundir.directory import RunDirectory
from rollout.rundir.queues import RunQueues
from rollout.tasks.orders import encode_order, iter_orders
from rollout.worker.setup import build_run_metadata, open_policy
from rollout.worker.worker import Worker
from transports import open_queue

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "color_codeword.yaml"
STAGES = (
    ("rollout.environments.", "environment"),
    ("rollout.images.", "images"),
    ("rollout.session.trace.", "trace and session"),
    ("rollout.session.session.", "trace and session"),
    ("rollout.session.prompt.", "trace and session"),
    ("renderers_adapter.", "renderer"),
    ("rollout.engine.", "engine client"),
    ("rollout.metrics.", "metrics"),
    ("rollout.records.wire.", "records"),
    ("rollout.records.stream.", "records"),
    ("transports.", "queue"),
    ("rollout.", "worker"),
    ("aiohttp.", "engine client"),
    ("httpx", "engine client"),
)


@contextmanager
def engine(directory: Path) -> Iterator[tuple[str, int]]:
    """Run an embedded engine in its own process; yield its root URL and its pid."""
    command = [sys.executable, "-m", "rollout", "serve", "embedded", "--allow", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            announcement = process.stdout.readline()
            yield announcement[announcement.index("http") :].split(";")[0], process.pid
        finally:
            process.terminate()


def cpu_of(pid: int) -> float:
    """Return how many seconds of CPU time a process has used."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def run_launch(directory: Path, url: str, settings: Mapping[str, object], workers: int) -> dict[str, Any]:
    """Run a launch; return its report with `playing`, the seconds from the first ready worker to the last end."""
    overrides = {"run.directory": directory, "engine.urls": json.dumps([url]), **settings}
    command = [sys.executable, "-m", "rollout", "launch", str(CONFIG), "--json", "--workers", str(workers)]
    command += [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    report: dict[str, Any] = json.loads(out)
    log = [json.loads(line) for line in (Path(report["run_dir"]) / "log.jsonl").read_text().splitlines()]
    timestamps = {
        event: [datetime.fromisoformat(e["timestamp"]) for e in log if e["event"] == event] for event in _EVENTS
    }
    report["playing"] = (max(timestamps["worker ended"]) - min(timestamps["worker ready"])).total_seconds()
    return report


_EVENTS = ("worker ready", "worker ended")


class CpuSampler:
    """Samples the running stage, hundreds of times for each second of CPU time.

    Attributes:
        stage_counts: how many samples each stage has.
        cpu: the CPU seconds that were sampled.
    """

    def __init__(self) -> None:
        self.stage_counts: Counter[str] = Counter()
        self.cpu = 0.0

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Take samples while the `with` block runs."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, 0.002, 0.002)
        before = time.process_time()
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.cpu += time.process_time() - before

    def _sample(self, _: int, frame: FrameType | None) -> None:
        while frame is not None:
            module = f"{frame.f_globals.get('__name__')}."
            stage = next((stage for prefix, stage in STAGES if module.startswith(prefix)), None)
            if stage is not None and not (stage == "worker" and module.startswith("rollout.worker.worker")):
                self.stage_counts[stage] += 1
                return
            frame = frame.f_back
        self.stage_counts["event loop and threads"] += 1


async def play(config: Config, directory: RunDirectory, sampler: CpuSampler) -> int:
    """Play all rollouts in this process, and sample all but the first; return the number of sampled turns."""
    async with (
        open_policy(config, directory, lambda: config.engine.urls, WorkerMetrics(config.run.name)) as policy,
        open_queue("memory://workers-tasks", lease="record") as tasks,
        RunQueues(config, directory).open_trajectories() as trajectories,
        anyio.create_task_group() as group,
    ):
        claims = Claims(directory.claims_path("benchmark"))
        worker = Worker(config, policy, build_run_metadata(config, "benchmark"), claims, tasks, trajectories)
        group.start_soon(worker.run)
        first, *rest = iter_orders(config.new_environment, config.tasks)
        await tasks.put(encode_order(first), key="k")
        await _wait_until_finished(worker, 1)
        before = worker.totals.turns
        with sampler.sampling():
            for order in rest:
                await tasks.put(encode_order(order), key="k")
            await _wait_until_finished(worker, 1 + len(rest))
        worker.drain()
    return worker.totals.turns - before


async def _wait_until_finished(worker: Worker, count: int) -> None:
    while True:
        if worker.totals.rollouts >= count:
            return
        await anyio.sleep(0.02)


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=200, help="how many rollouts to play")
    parser.add_argument("--turns", type=int, default=8, help="turns of a rollout")
    arguments = parser.parse_args()
    settings = {"tasks.count": arguments.rollouts // 4, "tasks.turns": arguments.turns, "environment.image_size": 64}
    with tempfile.TemporaryDirectory(prefix="bench-workers-") as name:
        directory = Path(name)
        with engine(directory) as (url, pid):
            for workers in (1, 2):
                before, children = cpu_of(pid), resource.getrusage(resource.RUSAGE_CHILDREN)
                report = run_launch(directory, url, settings, workers)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                used = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
                print(
                    f"{workers} worker{'s' * (workers > 1)}: {report['turns']} turns in {report['playing']:.1f} s, "
                    f"{report['turns'] / report['playing']:.0f} turns/s; CPU: {used:.1f} s of launch and workers, "
                    f"{cpu_of(pid) - before:.1f} s of the engine, on {os.cpu_count()} cores"
                )
            overrides = [f"{key}={value}" for key, value in settings.items()]
            config = load_config(CONFIG, [*overrides, f"engine.urls=['{url}']", f"run.directory={directory}"])
            run = RunDirectory(directory / "sampled")
            run.create()
            sampler = CpuSampler()
            with log_to_json_file(run.path / "log.jsonl"):
                turns = anyio.run(play, config, run, sampler)
    milliseconds_per_turn, total = 1000 * sampler.cpu / turns, sum(sampler.stage_counts.values())
    print(f"\nCPU time of one worker, {milliseconds_per_turn:.2f} ms for each turn:")
    for stage, count in sampler.stage_counts.most_common():
        print(f"  {stage:<24} {count / total:6.1%}  {milliseconds_per_turn * count / total:.2f} ms")


if __name__ == "__main__":
    main()
