"""The metrics that the processes of a launch and of a run export agree with their summaries."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from rollout.config.load import load_config
from rollout.launch.in_process import RunState, prepare_run, run_in_process
from rollout.records.task import Task
from rollout.tasks.orders import RolloutOrder, encode_order
from tests.unit.cli.in_process import set_options
from tests.unit.metrics.scraping import Samples, get, parse_metrics, scrape
from transports import open_queue

ENVIRONMENT_LABEL = ("color_codeword",)
SMALL = ("environment.image_size=32", "tasks.turns=2", "engine.sampling.temperature=0.5")


@pytest.fixture
def color_codeword(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


def metrics_urls(directory: Path) -> dict[str, str]:
    """Return the URLs of the metrics of the run in `directory`, by the names of its processes."""
    return {
        path.stem: f"http://{json.loads(path.read_text())[0]['targets'][0]}"
        for path in directory.glob("*/metrics/*.json")
    }


def summed(pages: Iterable[Samples]) -> Samples:
    """Return the sums over all processes of a run, as the dashboard shows them."""
    sums: Samples = {}
    for page in pages:
        for name, samples in page.items():
            for labels, value in samples.items():
                values = sums.setdefault(name, {})
                values[labels] = values.get(labels, 0.0) + value
    return sums


def all_reported(samples: Samples, *, rollouts: int, workers: int) -> bool:
    """Whether this number of rollouts has ended and this number of workers is ready."""
    return (
        sum(samples.get("rollout_rollouts_total", {}).values()) == rollouts
        and samples["rollout_workers"][*ENVIRONMENT_LABEL, "ready"] == workers
    )


def assert_agrees(samples: Samples, summary: dict[str, Any]) -> None:
    assert samples["rollout_rollouts_total"] == {
        (*ENVIRONMENT_LABEL, status): n for status, n in summary["status"].items()
    }
    assert samples["rollout_finished_turns_total"][ENVIRONMENT_LABEL] == summary["turns"]
    assert samples["rollout_finished_tokens_total"][ENVIRONMENT_LABEL] == summary["tokens"]
    assert samples["rollout_finished_images_total"][ENVIRONMENT_LABEL] == summary["images"]
    assert samples["rollout_record_bytes_total"][ENVIRONMENT_LABEL] == summary["queue_bytes"]
    assert sum(samples["rollout_turns_total"].values()) == summary["turns"]
    assert sum(samples["rollout_engine_request_seconds_count"].values()) == summary["turns"]


def test_the_metrics_of_a_launch_and_its_workers_agree_with_the_summary(color_codeword: Path, tmp_path: Path) -> None:
    tasks = f"file://{tmp_path}/tasks"

    async def put(count: int) -> None:
        async with open_queue(tasks, lease="record") as queue:
            for index in range(count):
                order = RolloutOrder(Task(f"t{index}", index, index, {"codeword": ["red", "blue"]}), 0, 1)
                await queue.put(encode_order(order), key=order.rollout_id)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = tmp_path / "runs" / "one"
    rollout = (sys.executable, "-m", "rollout")
    settings = set_options(*SMALL, "tasks.source=queue", f"queue.tasks={tasks}")
    launched = [*rollout, "launch", str(color_codeword), "--run", str(run), "--workers=2", "--json", *settings]
    joined = [*rollout, "worker", str(color_codeword), "--run", str(run), "--name=joined", *settings]
    asyncio.run(put(18))
    names = {"launch", "color_codeword-0", "color_codeword-1", "joined"}
    pages: dict[str, Samples] = {}
    with (
        subprocess.Popen(
            [*launched, "--set", f"metrics.port={port}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as launch,
        subprocess.Popen(joined, stderr=subprocess.DEVNULL) as worker,
    ):
        try:
            deadline = time.monotonic() + 60
            while pages.keys() != names or not all_reported(pages["launch"], rollouts=18, workers=2):
                assert time.monotonic() < deadline
                assert launch.poll() is None
                urls = metrics_urls(tmp_path / "runs")
                pages = {name: scrape(url) for name, url in urls.items()}
                time.sleep(0.05)
            pages = {name: scrape(url) for name, url in urls.items()}
            assert urls["launch"].endswith(f":{port}")
            for url in urls.values():
                assert (get(f"{url}/healthz"), get(f"{url}/readyz")) == ((200, "ok\n"), (200, "ok\n"))
            for process in (worker, launch):
                process.send_signal(signal.SIGTERM)
            summary = json.loads(launch.communicate(timeout=30)[0])
            assert worker.wait(30) == 0
        finally:
            worker.kill()
            launch.kill()
    assert pages["launch"]["rollout_workers"] == {(*ENVIRONMENT_LABEL, "ready"): 2, (*ENVIRONMENT_LABEL, "starting"): 0}
    assert_agrees(summed(pages.values()), summary)
    for name in ("color_codeword-0", "color_codeword-1"):
        assert not [sample for sample in pages[name] if sample.startswith("rollout_queue_")]
    assert metrics_urls(tmp_path / "runs") == {}


def test_the_metrics_of_a_run_grow_up_to_its_summary(color_codeword: Path, tmp_path: Path) -> None:
    settings = (*SMALL, "tasks.count=4", f"run.directory={tmp_path}", "engine.embedded.latency_ms=40")
    config = load_config(color_codeword, settings)
    turn_counts: list[float] = []

    async def look(state: RunState, _: anyio.Event) -> None:
        while True:
            if (url := metrics_urls(tmp_path).get("run")) is not None:
                try:
                    found = await anyio.to_thread.run_sync(scrape, url, abandon_on_cancel=True)
                except OSError:
                    if state.trainer_counters.trajectories < state.total_rollouts:
                        raise
                    return  # the run ended before it answered
                turn_counts.append(sum(found.get("rollout_turns_total", {}).values()))
            await anyio.sleep(0.01)

    state = prepare_run(config)
    run_in_process(config, state, look)
    summary = state.report()
    assert turn_counts == sorted(turn_counts)
    assert len(set(turn_counts)) > 2
    assert turn_counts[-1] <= summary["turns"]
    (last,) = tmp_path.glob("*/metrics/run.prom")
    found = parse_metrics(last.read_text())
    assert_agrees(found, summary)
    assert found["rollout_trainer_trajectories_total"][()] == summary["trainer"]["trajectories"]
    assert found["rollout_trainer_bytes_total"][()] == summary["queue_bytes"]
    assert metrics_urls(tmp_path) == {}


def test_the_configuration_can_switch_metrics_off(color_codeword: Path, tmp_path: Path) -> None:
    settings = (*SMALL, "tasks.count=1", "tasks.group_size=1", f"run.directory={tmp_path}", "metrics.serve=false")
    config = load_config(color_codeword, settings)
    state = prepare_run(config)

    async def nobody(*_: object) -> None:
        return

    run_in_process(config, state, nobody)
    assert state.report()["rollouts"] == 1
    assert list(tmp_path.glob("*/metrics/*")) == []
