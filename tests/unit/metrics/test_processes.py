"""What whole processes export: a launch and a run, scraped while they go on, say what their summaries say."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from rollout.config.load import load_config
from rollout.launch.in_process import RunState, prepare_run, run_in_process
from rollout.records.task import Task
from rollout.tasks.orders import RolloutOrder, encode_order
from transports import open_queue

Samples = dict[str, dict[tuple[str, ...], float]]
ME = ("color_codeword",)
SMALL = ("environment.image_size=32", "tasks.turns=2", "engine.sampling.temperature=0.5")


@pytest.fixture
def color_codeword(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


def root(directory: Path) -> str | None:
    """Where the one process of a run below `directory` serves its metrics."""
    told = next(iter(directory.glob("*/metrics/*.json")), None)
    return f"http://{json.loads(told.read_text())[0]['targets'][0]}" if told else None


def settled(found: Samples, *, rollouts: int, workers: int) -> bool:
    """Whether so many rollouts have ended, and every worker is ready and has told all it did."""
    told, ended = found.get("rollout_sampled_tokens_total", {}), found.get("rollout_rollouts_total", {})
    return (
        sum(ended.values()) == rollouts
        and told == found["rollout_finished_tokens_total"]
        and sum(found["rollout_turns_total"].values()) == found["rollout_finished_turns_total"][ME]
        and found["rollout_workers"][*ME, "ready"] == workers
    )


def agrees(found: Samples, summary: dict[str, Any]) -> None:
    assert found["rollout_rollouts_total"] == {(*ME, status): n for status, n in summary["status"].items()}
    assert found["rollout_finished_turns_total"][ME] == summary["turns"]
    assert found["rollout_finished_images_total"][ME] == summary["images"]
    assert sum(found["rollout_turns_total"].values()) == summary["turns"]
    assert sum(found["rollout_engine_request_seconds_count"].values()) == summary["turns"]


def test_a_launch_scraped_while_it_goes_on_says_what_its_summary_says(
    color_codeword: Path,
    tmp_path: Path,
    scrape: Callable[[str], Samples],
    get: Callable[[str], tuple[int, str]],
) -> None:
    tasks = f"file://{tmp_path}/tasks"

    async def put(count: int) -> None:
        async with open_queue(tasks, lease="record") as queue:
            for index in range(count):
                order = RolloutOrder(Task(f"t{index}", index, index, {"codeword": ["red", "blue"]}), 0, 1)
                await queue.put(encode_order(order), key=order.rollout_id)

    told = (*SMALL, "tasks.source=queue", f"queue.tasks={tasks}", f"run.directory={tmp_path}/runs")
    settings = [part for setting in told for part in ("--set", setting)]
    command = [sys.executable, "-m", "rollout", "launch", str(color_codeword), "--workers=2", "--json", *settings]
    asyncio.run(put(12))
    last: Samples = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as launch:
        try:
            deadline = time.monotonic() + 60
            while not settled(last, rollouts=12, workers=2):
                assert time.monotonic() < deadline
                assert launch.poll() is None
                if (url := root(tmp_path / "runs")) is not None:
                    last = scrape(url)
                time.sleep(0.05)
            assert url is not None
            assert last["rollout_workers"] == {(*ME, "ready"): 2, (*ME, "starting"): 0}
            assert (get(f"{url}/healthz"), get(f"{url}/readyz")) == ((200, "ok\n"), (200, "ok\n"))
            launch.send_signal(signal.SIGTERM)
            summary = json.loads(launch.communicate(timeout=30)[0])
        finally:
            launch.kill()
    agrees(last, summary)
    assert last["rollout_finished_tokens_total"][ME] == summary["tokens"]
    assert last["rollout_sampled_tokens_total"][ME] == summary["tokens"]


def test_a_run_scraped_while_it_goes_on_never_says_more_than_its_summary(
    color_codeword: Path, tmp_path: Path, scrape: Callable[[str], Samples], read_metrics: Callable[[str], Samples]
) -> None:
    settings = (*SMALL, "tasks.count=4", f"run.directory={tmp_path}", "engine.embedded.latency_ms=40")
    config = load_config(color_codeword, settings)
    seen: list[float] = []

    async def look(state: RunState, _: anyio.Event) -> None:
        while True:
            if (url := root(tmp_path)) is not None:
                found = await anyio.to_thread.run_sync(scrape, url, abandon_on_cancel=True)
                seen.append(sum(found.get("rollout_turns_total", {}).values()))
            await anyio.sleep(0.01)

    state = prepare_run(config)
    run_in_process(config, state, look)
    summary = state.report()
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert seen[-1] <= summary["turns"]
    (last,) = tmp_path.glob("*/metrics/run.prom")
    found = read_metrics(last.read_text())
    agrees(found, summary)
    assert found["rollout_record_bytes_total"][ME] == summary["queue_bytes"]
    assert found["rollout_trainer_trajectories_total"][()] == summary["trainer"]["trajectories"]
    assert found["rollout_trainer_bytes_total"][()] == summary["queue_bytes"]
    assert root(tmp_path) is None


def test_metrics_are_off_where_the_configuration_says_so(color_codeword: Path, tmp_path: Path) -> None:
    settings = (*SMALL, "tasks.count=1", "tasks.group_size=1", f"run.directory={tmp_path}", "metrics.serve=false")
    config = load_config(color_codeword, settings)
    state = prepare_run(config)

    async def nobody(*_: object) -> None:
        return

    run_in_process(config, state, nobody)
    assert state.report()["rollouts"] == 1
    assert list(tmp_path.glob("*/metrics/*")) == []
