"""Each test causes a problem and reads the metric that docs/metrics.md names for it."""

import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import pytest

from rollout.config.load import Config, load_config
from rollout.environments.base import Environment, Model, Score
from rollout.metrics.export import export_metrics
from rollout.metrics.outcomes import OutcomeCollector
from rollout.metrics.queues import QueueMonitor
from rollout.metrics.server import ScrapeTargetFile
from rollout.metrics.worker import WorkerMetrics
from rollout.records.task import Task
from rollout.rundir.claims import Claims
from rollout.rundir.directory import RunDirectory
from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from rollout.tasks.orders import RolloutOrder, encode_order
from rollout.trainer import TrajectoryReader
from rollout.trainer.metrics import serving_metrics
from rollout.trainer.testing import put_all, read_all, scripted_rollout
from rollout.worker.setup import build_run_metadata, open_policy
from rollout.worker.worker import Worker
from tests.unit.metrics.scraping import Samples, scrape
from transports import Queue, QueueError, open_queue
from transports.base import QueueStats

ENVIRONMENT_LABEL = ("color_codeword",)


class CoroutineEnvironment(Environment):
    """Plays the coroutine that a test gives it."""

    play: ClassVar[Any]

    async def run(self, task: Task, model: Model) -> Score:
        return await type(self).play(model)  # type: ignore[no-any-return]


async def one_turn(model: Model) -> Score:
    await model.chat([{"role": "user", "content": "Heads or tails?"}])
    return Score(1.0)


@dataclass
class ExportingWorker:
    """A worker that plays and exports its metrics."""

    worker: Worker
    tasks: Queue
    url: str

    async def put_orders(self, count: int) -> None:
        for _ in range(count):
            name = f"{time.monotonic_ns()}"
            await self.tasks.put(encode_order(RolloutOrder(Task(name, 0, seed=0), 0, 1)), key=name)

    async def read_until(self, holds: Callable[[Samples], bool]) -> Samples:
        with anyio.fail_after(30):
            while True:
                found = await anyio.to_thread.run_sync(scrape, self.url)
                if holds(found):
                    return found
                await anyio.sleep(0.02)


async def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - the monitor has no event
        await anyio.sleep(0.02)


def count_ended(found: Samples) -> float:
    return sum(found.get("rollout_rollouts_total", {}).values())


@pytest.fixture
def config(repository: Path, tmp_path: Path) -> Config:
    loaded = load_config(repository / "configs" / "color_codeword.yaml", (f"run.directory={tmp_path}",))
    return replace(loaded, environment_class=CoroutineEnvironment)


@pytest.fixture
def run_worker(config: Config, tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def run(urls: Sequence[str], play: Any = one_turn, options: str = "") -> AsyncIterator[ExportingWorker]:
        CoroutineEnvironment.play = play
        metrics, directory = WorkerMetrics(config.run.name), RunDirectory(tmp_path / "run")
        directory.create()
        announcement = ScrapeTargetFile(directory.metrics_path, "worker", {})
        async with (
            open_queue(f"memory://{tmp_path.name}-tasks", lease="record") as tasks,
            open_queue(f"memory://{tmp_path.name}{options}") as trajectories,
            export_metrics(
                metrics.registry, announcement, config.metrics, loop_monitor=metrics.loop_monitor, stall_timeout=60
            ) as export,
            open_policy(config, directory, lambda: tuple(urls), metrics) as policy,
            anyio.create_task_group() as group,
        ):
            worker = Worker(
                config, policy, build_run_metadata(config, "run"), Claims(tmp_path / "c"), tasks, trajectories
            )
            metrics.export_state(lambda: worker.in_flight, policy.engine, policy.version)
            metrics.registry.register(OutcomeCollector(lambda: {config.run.name: worker.totals}))
            export.watch_queue(config.run.name, "trajectories", trajectories)
            group.start_soon(worker.run)
            (target_file,) = directory.metrics_path.glob("*.json")
            (address,) = json.loads(target_file.read_text())[0]["targets"]
            yield ExportingWorker(worker, tasks, f"http://{address}")
            group.cancel_scope.cancel()

    return run


def serve_version(version: str, directory: Path) -> EmbeddedServer:
    return EmbeddedServer(EmbeddedSettings(weight_version=version, allowed_directories=(directory,)))


async def test_a_full_queue_grows_old_and_stops_admission(run_worker: Callable[..., Any], tmp_path: Path) -> None:
    with serve_version("0", tmp_path) as engine:
        async with run_worker([engine], options="?high_water_records=5") as running:
            await running.put_orders(40)
            await running.read_until(
                lambda found: found["rollout_queue_backlog_records"][*ENVIRONMENT_LABEL, "trajectories"] > 5
            )
            aged = await running.read_until(
                lambda found: found["rollout_admission_wait_seconds"][ENVIRONMENT_LABEL] > 0.3
            )
            before = aged["rollout_queue_oldest_age_seconds"][*ENVIRONMENT_LABEL, "trajectories"]
            await running.read_until(
                lambda found: found["rollout_queue_oldest_age_seconds"][*ENVIRONMENT_LABEL, "trajectories"] > before + 1
            )
            assert count_ended(aged) < 40


async def test_an_engine_that_dies_is_ejected_and_its_requests_are_retried(
    run_worker: Callable[..., Any], tmp_path: Path
) -> None:
    with serve_version("0", tmp_path) as sound:
        dying = serve_version("0", tmp_path)
        with dying as dead:
            async with run_worker([sound, dead]) as running:
                await running.put_orders(8)
                before = await running.read_until(lambda found: count_ended(found) == 8)
                assert before["rollout_engine_ejected"] == {
                    (sound, *ENVIRONMENT_LABEL): 0,
                    (dead, *ENVIRONMENT_LABEL): 0,
                }
                dying.stop()
                await running.put_orders(16)
                after = await running.read_until(lambda found: count_ended(found) == 24)
    assert after["rollout_rollouts_total"] == {(*ENVIRONMENT_LABEL, "ok"): 24}
    assert after["rollout_engine_ejected"] == {(sound, *ENVIRONMENT_LABEL): 0, (dead, *ENVIRONMENT_LABEL): 1}
    assert after["rollout_engine_ejections_total"][dead, *ENVIRONMENT_LABEL] >= 1
    lost = after["rollout_engine_request_seconds_count"][dead, *ENVIRONMENT_LABEL, "EngineUnreachable"]
    assert lost >= 3
    assert after["rollout_engine_retries_total"][ENVIRONMENT_LABEL] == running.worker.totals.request_retries >= lost


async def test_engines_with_old_weights_lag_behind_the_policy(run_worker: Callable[..., Any], tmp_path: Path) -> None:
    with serve_version("step-3", tmp_path) as engine:
        async with run_worker([engine]) as running:
            await running.put_orders(1)
            await running.read_until(lambda found: found["rollout_policy_lag_versions_count"][ENVIRONMENT_LABEL] == 1)
            running.worker.advance_version("5")
            await running.put_orders(4)
            found = await running.read_until(
                lambda found: found["rollout_policy_lag_versions_count"][ENVIRONMENT_LABEL] == 5
            )
    assert found["rollout_policy_version"][ENVIRONMENT_LABEL] == 5
    assert found["rollout_policy_lag_versions_bucket"][*ENVIRONMENT_LABEL, "0.0"] == 1
    assert found["rollout_policy_lag_versions_bucket"][*ENVIRONMENT_LABEL, "1.0"] == 1
    assert found["rollout_policy_lag_versions_bucket"][*ENVIRONMENT_LABEL, "2.0"] == 5


async def test_an_environment_that_blocks_the_event_loop_stalls_it(
    run_worker: Callable[..., Any], tmp_path: Path
) -> None:
    seen = threading.Event()

    def look(url: str) -> None:
        deadline = time.monotonic() + 20
        while (
            scrape(url)["rollout_event_loop_stalled_seconds"][ENVIRONMENT_LABEL] < 0.5 and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        seen.set()

    async def block(model: Model) -> Score:
        assert seen.wait(30)
        return await one_turn(model)

    with serve_version("0", tmp_path) as engine:
        async with run_worker([engine], block) as running:
            threading.Thread(target=look, args=(running.url,)).start()
            await running.put_orders(1)
            await running.read_until(lambda found: count_ended(found) == 1)
            found = await running.read_until(
                lambda found: found["rollout_event_loop_lag_seconds_sum"][ENVIRONMENT_LABEL] > 0.5
            )
    assert found["rollout_event_loop_stalled_seconds"][ENVIRONMENT_LABEL] < 0.5


async def test_a_queue_that_does_not_answer_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: Queue) -> QueueStats:
        raise QueueError("nobody there")

    async with open_queue("memory://silent") as queue, anyio.create_task_group() as group:
        watch = QueueMonitor(queue)
        group.start_soon(watch.run)
        await queue.put((b"1",), key="k")
        with anyio.fail_after(20):
            await wait_until(lambda: watch.latest_stats.backlog_records == 1)
            monkeypatch.setattr("transports.memory.MemoryQueue.stats", fail)
            await wait_until(lambda: watch.silent_seconds > 0.5)
            monkeypatch.undo()
            await wait_until(lambda: watch.silent_seconds == 0)
        group.cancel_scope.cancel()


async def test_the_trainer_counts_stale_trajectories_and_dropped_duplicates() -> None:
    url = "memory://stale-at-the-trainer"
    async with open_queue(url) as queue, TrajectoryReader(open_queue(url)) as reader, serving_metrics(reader) as root:
        reader.version = 9
        for name, version in (("000000.0", "9"), ("000001.0", "7"), ("000002.0", "3")):
            await put_all(queue, await scripted_rollout(name, turns=2, version=version))
        assert len(await read_all(reader)) == 3
        await put_all(queue, await scripted_rollout("000000.0", turns=2, version="9", attempt=2))
        assert await read_all(reader) == []
        found = await anyio.to_thread.run_sync(scrape, root)
    assert found["rollout_trainer_policy_version"] == {(): 9}
    assert found["rollout_trainer_trajectories_total"] == {(): 3}
    assert {le: found["rollout_trainer_staleness_versions_bucket"][le,] for le in ("0.0", "1.0", "2.0", "6.0")} == {
        "0.0": 1,
        "1.0": 1,
        "2.0": 2,
        "6.0": 3,
    }
    assert found["rollout_trainer_staleness_versions_sum"] == {(): 8}
    assert found["rollout_trainer_dropped_records_total"] == {(): 4}
    assert found["rollout_trainer_unacked_records"][()] == 16
