"""A launch that waits reports what it waits for, since when, and what to do; then it reports that it continues."""

import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from rollout.config.sections import PolicyConfig
from rollout.launch.feeder import Feeder
from rollout.launch.state import EnvironmentState, LaunchState, Wait, WaitedFor
from rollout.launch.supervisor import RestartBudget, WorkerSlot
from rollout.launch.waiting import ReadingClock, WaitWatcher
from rollout.metrics.queues import QueueMonitor
from rollout.records.progress import TrainerProgress
from rollout.worker.link import Heartbeat
from tests.unit.launch.states import prepare_launch
from tests.unit.launch.test_feeder import make_orders, receive
from transports import Queue, open_queue
from transports.base import QueueStats
from transports.testing.cases import receive_one


class PreparedLaunch:
    """A launch with one environment. A test sets its backlogs and its workers."""

    def __init__(self, state: LaunchState, tasks: Queue, feeder: Feeder) -> None:
        self.state, self.tasks, self.feeder = state, tasks, feeder
        self.environment: EnvironmentState = state.environments[0]
        self.environment.feeder = feeder
        self.watcher = WaitWatcher(self.environment, state)

    def set_backlogs(self, *, orders: int = 0, records: int = 0, nbytes: int = 0) -> None:
        assert self.environment.tasks_monitor is not None
        assert self.environment.trajectories_monitor is not None
        self.environment.tasks_monitor.latest_stats = QueueStats(orders, 100 * orders, 1.0, 0, 0)
        self.environment.trajectories_monitor.latest_stats = QueueStats(records, nbytes, 1.0, 0, 0)

    def add_worker(self, heartbeat: Heartbeat) -> None:
        slot = WorkerSlot("w", "color_codeword", (), Path(), self.tasks, 1.0, RestartBudget(1))
        slot.heartbeat = heartbeat
        self.environment.worker_slots.append(slot)

    async def expect(self, waited_for: WaitedFor) -> str:
        wait = await self.watcher.find_wait()
        assert wait is not None
        assert wait.waited_for is waited_for
        return wait.text


LaunchMaker = Callable[..., PreparedLaunch]


@pytest.fixture
async def make_launch(repository: Path, tmp_path: Path) -> AsyncIterator[LaunchMaker]:
    async with AsyncExitStack() as stack:

        def make(*overrides: str, trajectories: str = "") -> PreparedLaunch:
            state = prepare_launch(repository, tmp_path, *overrides)
            environment = state.environments[0]
            tasks = open_queue(f"memory://{tmp_path.name}-tasks", lease="record")
            records = open_queue(f"memory://{tmp_path.name}-trajectories{trajectories}")
            for queue in (tasks, records):
                stack.push_async_callback(queue.aclose)
            environment.tasks_queue, environment.tasks_monitor = tasks, QueueMonitor(tasks)
            environment.trajectories_monitor = QueueMonitor(records)
            policy = environment.launch_config.config.policy
            return PreparedLaunch(state, tasks, Feeder([], tasks, environment.claims, policy))

        yield make


@pytest.mark.parametrize(
    ("limit", "records", "nbytes", "size"),
    [
        ("?high_water=64MB", 10, 64_000_001, "the backlog of 64.0 MB has reached its high water of 64000000 bytes"),
        ("?high_water_records=1000", 1001, 5, "the backlog of 1,001 records has reached its high water of"),
    ],
)
async def test_a_launch_with_a_full_backlog_waits_for_a_trainer(
    make_launch: LaunchMaker, limit: str, records: int, nbytes: int, size: str
) -> None:
    launch = make_launch(trajectories=limit)
    launch.set_backlogs(orders=3, records=records, nbytes=nbytes)
    text = await launch.expect(WaitedFor.TRAINER_READS)
    assert text.startswith(f"waiting for a trainer: {size}")
    assert ", and no trainer has read and committed any record since" in text
    assert re.search(r"since \d\d:\d\d\.", text)
    assert "or play without a trainer: rollout run " in text
    assert "color_codeword.yaml" in text


async def test_a_launch_does_not_wait_for_a_trainer_when_workers_have_all_orders(make_launch: LaunchMaker) -> None:
    launch = make_launch(trajectories="?high_water=1kB")
    launch.add_worker(Heartbeat(ready=True, in_flight=3))
    launch.set_backlogs(orders=3, records=9, nbytes=5000)
    assert await launch.watcher.find_wait() is None


def test_a_backlog_was_read_if_it_shrinks_or_its_oldest_record_changes() -> None:
    clock = ReadingClock()
    began = clock.last_read
    clock.update(QueueStats(5, 500, 1.0, 0, 0))
    clock.update(QueueStats(7, 700, 2.0, 0, 0))
    assert clock.last_read == began
    clock.update(QueueStats(7, 700, 1.5, 0, 0))
    after_one = clock.last_read
    assert after_one > began
    clock.update(QueueStats(6, 600, 2.5, 0, 0))
    assert clock.last_read > after_one


@pytest.mark.parametrize(
    ("progress", "sent", "expected"),
    [
        (
            None,
            16,
            (
                "waiting for a trainer, and no trainer has reported its progress yet",
                "allow 16 rollouts that the trainer has not consumed, and 16 such rollouts are played",
            ),
        ),
        (
            TrainerProgress(version=3, consumed=24, discarded=1),
            41,
            (
                "waiting for the trainer, which is at version 3 and has consumed 24",
                "allow 16 rollouts that the trainer has not consumed, and 16 such rollouts are played",
            ),
        ),
    ],
)
async def test_a_paced_launch_reports_the_version_and_the_limit_of_rollouts_in_flight(
    make_launch: LaunchMaker, progress: TrainerProgress | None, sent: int, expected: tuple[str, str]
) -> None:
    launch = make_launch("policy.max_staleness=1", "policy.batch=8")
    launch.feeder.is_paced, launch.feeder.trainer_progress, launch.feeder.rollouts_sent = True, progress, sent
    text = await launch.expect(WaitedFor.TRAINER_VERSION)
    assert all(part in text for part in expected)
    launch.set_backlogs(orders=1)  # a rollout is still played
    assert (wait := await launch.watcher.find_wait()) is None or wait.waited_for is not WaitedFor.TRAINER_VERSION


async def test_a_launch_without_workers_reports_how_to_start_one(make_launch: LaunchMaker) -> None:
    launch = make_launch("tasks.turns=2")
    await launch.tasks.put((b"an order",), key="k")
    launch.set_backlogs(orders=1)
    text = await launch.expect(WaitedFor.WORKERS)
    assert "no worker has taken one of the 1 orders" in text
    assert f"--set tasks.turns=2 --run {launch.state.directory.path}" in text
    assert await launch.tasks.receive(timeout=5) is not None
    assert await launch.watcher.find_wait() is None


async def test_a_launch_that_gets_its_orders_from_a_queue_waits_for_them(make_launch: LaunchMaker) -> None:
    launch = make_launch("tasks.source=queue")
    launch.add_worker(Heartbeat(ready=True))
    assert "waiting for orders on memory://" in await launch.expect(WaitedFor.ORDERS)
    launch.set_backlogs(orders=1)
    assert await launch.watcher.find_wait() is None


async def test_an_engine_that_cannot_be_reached_is_named(make_launch: LaunchMaker) -> None:
    launch = make_launch("engine.urls=['http://127.0.0.1:9']")
    launch.add_worker(Heartbeat(ready=False))
    text = await launch.expect(WaitedFor.ENGINES)
    assert "its engine does not answer: no answer from the engine at http://127.0.0.1:9/" in text


async def test_an_engine_that_connects_and_does_not_answer_is_named(
    make_launch: LaunchMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.launch.waiting._PROBE_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent_engine:
        url = f"http://127.0.0.1:{silent_engine.getsockname()[1]}"
        launch = make_launch(f"engine.urls=['{url}']")
        launch.add_worker(Heartbeat(ready=False))
        text = await launch.expect(WaitedFor.ENGINES)
    assert f"{url} did not answer within" in text


async def test_a_launch_whose_workers_are_starting_does_not_wait(make_launch: LaunchMaker) -> None:
    launch = make_launch()
    launch.add_worker(Heartbeat(ready=False))
    assert await launch.watcher.find_wait() is None


async def test_orders_of_an_earlier_launch_are_counted(make_launch: LaunchMaker) -> None:
    launch = make_launch()
    launch.feeder.leftover_count = 3
    assert "waiting for 3 orders of the earlier launch" in await launch.expect(WaitedFor.EARLIER_ORDERS)


async def test_the_feeder_counts_the_orders_that_it_has_to_remove(make_launch: LaunchMaker) -> None:
    launch = make_launch()
    async with open_queue(launch.tasks.url, lease="record") as worker:
        await worker.put((b"held",), key="k")
        delivery = await receive_one(worker)
        async with anyio.create_task_group() as group:
            group.start_soon(launch.feeder.remove_leftovers, 60.0)
            with anyio.fail_after(20):
                while not launch.feeder.leftover_count:  # noqa: ASYNC110 - the feeder sets it
                    await anyio.sleep(0.01)
            await delivery.ack()
    assert launch.feeder.leftover_count == 0


async def test_the_feeder_is_paced_until_the_trainer_goes_on(make_launch: LaunchMaker) -> None:
    launch = make_launch()
    policy = PolicyConfig(max_staleness=0, batch=4)
    feeder = Feeder(make_orders(2, 4), launch.tasks, launch.environment.claims, policy)
    async with anyio.create_task_group() as group:
        group.start_soon(feeder.feed, 100)
        await launch.tasks.ack(await receive(launch.tasks, 4))
        with anyio.fail_after(20):
            while not feeder.is_paced:  # noqa: ASYNC110 - the feeder sets it
                await anyio.sleep(0.01)
        feeder.trainer_progress = TrainerProgress(version=1, consumed=4)
        await launch.tasks.ack(await receive(launch.tasks, 4))
    assert not feeder.is_paced


async def test_a_launch_that_stops_does_not_wait(make_launch: LaunchMaker) -> None:
    launch = make_launch("tasks.source=queue")
    await launch.expect(WaitedFor.ORDERS)
    launch.state.stop_early()
    assert await launch.watcher.find_wait() is None


async def test_a_wait_of_two_seconds_is_reported_then_each_minute_and_at_its_end(make_launch: LaunchMaker) -> None:
    launch = make_launch()
    wait = Wait(WaitedFor.ORDERS, "waiting for orders")
    other = Wait(WaitedFor.ENGINES, "waiting for engines")

    def notices(found: Wait | None, now: float) -> list[str]:
        launch.watcher._note(found, now)
        texts = [notice.text.removeprefix("color_codeword: ") for notice in launch.state.notices]
        launch.state.notices.clear()
        return texts

    assert notices(wait, 100.0) == notices(wait, 101.0) == []
    assert notices(None, 101.1) == [], "a short wait is not reported"
    assert notices(wait, 200.0) == []
    assert notices(wait, 202.0) == ["waiting for orders"]
    assert launch.environment.wait is wait
    assert notices(wait, 203.0) == notices(wait, 261.0) == []
    assert notices(wait, 262.5) == ["waiting for orders"]
    assert notices(other, 270.0) == ["continues after 70 s"]
    assert notices(other, 272.0) == ["waiting for engines"]
    assert notices(None, 275.0) == ["continues after 5 s"]
    assert launch.environment.wait is None
