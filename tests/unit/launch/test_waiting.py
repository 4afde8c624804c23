"""A launch that waits says what it waits for, since when, and what to do; later it says that it continues."""

import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from rollout.config.sections import PolicyConfig
from rollout.launch.feeder import Feeder
from rollout.launch.local import LocalPlace
from rollout.launch.state import EnvironmentState, LaunchState, Wait, WaitedFor
from rollout.launch.supervisor import RestartBudget, WorkerSlot
from rollout.launch.waiting import ReadingClock, WaitWatcher
from rollout.metrics.queues import QueueMonitor
from rollout.records.progress import TrainerProgress
from rollout.rundir.manifest import create_run
from rollout.worker.link import Heartbeat
from tests.unit.launch.test_feeder import make_orders, receive
from transports import open_queue
from transports.base import QueueStats


class World:
    """A prepared environment of a launch, whose queues and workers are as a test says."""

    def __init__(self, state: LaunchState) -> None:
        self.state = state
        self.environment: EnvironmentState = state.environments[0]
        self.watcher = WaitWatcher(self.environment, state)

    @property
    def feeder(self) -> Feeder:
        assert self.environment.feeder is not None
        return self.environment.feeder

    def set_backlogs(self, *, orders: int = 0, records: int = 0, nbytes: int = 0) -> None:
        assert self.environment.tasks_monitor is not None
        assert self.environment.trajectories_monitor is not None
        self.environment.tasks_monitor.latest_stats = QueueStats(orders, 100 * orders, 1.0, 0, 0)
        self.environment.trajectories_monitor.latest_stats = QueueStats(records, nbytes, 1.0, 0, 0)

    def add_worker(self, heartbeat: Heartbeat) -> None:
        assert self.environment.tasks_queue is not None
        slot = WorkerSlot("w", "color_codeword", (), Path(), self.environment.tasks_queue, 1.0, RestartBudget(1))
        slot.heartbeat = heartbeat
        self.environment.worker_slots.append(slot)

    async def expect(self, waited_for: WaitedFor) -> str:
        wait = await self.watcher.find_wait()
        assert wait is not None
        assert wait.waited_for is waited_for
        return wait.text


WorldMaker = Callable[..., "World"]


@pytest.fixture
async def make_world(repository: Path, tmp_path: Path) -> AsyncIterator[Callable[..., World]]:
    async with AsyncExitStack() as stack:

        def make(*overrides: str, trajectories: str = "") -> World:
            config = repository / "configs" / "color_codeword.yaml"
            directory, launch_configs = create_run([config], (f"run.directory={tmp_path}", *overrides))
            state = LaunchState(directory, launch_configs, 0, LocalPlace(), is_resumed=False)
            environment = state.environments[0]
            tasks_queue = open_queue(f"memory://{tmp_path.name}-tasks", lease="record")
            trajectories_queue = open_queue(f"memory://{tmp_path.name}-trajectories{trajectories}")
            stack.push_async_callback(tasks_queue.aclose)
            stack.push_async_callback(trajectories_queue.aclose)
            environment.tasks_queue, environment.tasks_monitor = tasks_queue, QueueMonitor(tasks_queue)
            environment.trajectories_monitor = QueueMonitor(trajectories_queue)
            policy = launch_configs[0].config.policy
            environment.feeder = Feeder([], tasks_queue, environment.claims, policy)
            return World(state)

        yield make


@pytest.mark.parametrize(
    ("limit", "records", "nbytes", "size"),
    [
        ("?high_water=64MB", 10, 64_000_001, "the backlog of 64.0 MB has reached its high water of 64000000 bytes"),
        (
            "?high_water_records=1000",
            1001,
            5,
            "the backlog of 1,001 records has reached its high water of",
        ),
    ],
)
async def test_a_full_backlog_waits_for_a_trainer(
    make_world: WorldMaker, limit: str, records: int, nbytes: int, size: str
) -> None:
    world = make_world(trajectories=limit)
    world.set_backlogs(orders=3, records=records, nbytes=nbytes)
    text = await world.expect(WaitedFor.TRAINER_READS)
    assert text.startswith(f"waiting for a trainer: {size}")
    assert ", and no trainer has read and committed any record since" in text
    assert re.search(r"since \d\d:\d\d\.", text)
    assert "or play without a trainer: rollout run " in text
    assert "color_codeword.yaml" in text


async def test_a_full_backlog_holds_nothing_up_once_all_orders_are_taken(make_world: WorldMaker) -> None:
    world = make_world(trajectories="?high_water=1kB")
    world.add_worker(Heartbeat(ready=True, in_flight=3))
    world.set_backlogs(orders=3, records=9, nbytes=5000)
    assert await world.watcher.find_wait() is None


def test_somebody_reads_when_the_backlog_shrinks_or_its_oldest_record_changes() -> None:
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
async def test_a_paced_launch_says_the_version_and_how_many_may_be_in_flight(
    make_world: WorldMaker, progress: TrainerProgress | None, sent: int, expected: tuple[str, str]
) -> None:
    world = make_world("policy.max_staleness=1", "policy.batch=8")
    world.feeder.is_paced, world.feeder.trainer_progress, world.feeder.rollouts_sent = True, progress, sent
    text = await world.expect(WaitedFor.TRAINER_VERSION)
    assert all(part in text for part in expected)
    world.set_backlogs(orders=1)  # a rollout is still played
    assert (wait := await world.watcher.find_wait()) is None or wait.waited_for is not WaitedFor.TRAINER_VERSION


async def test_a_launch_without_workers_says_how_to_start_some(make_world: WorldMaker) -> None:
    world = make_world("tasks.turns=2")
    assert world.environment.tasks_queue is not None
    await world.environment.tasks_queue.put((b"an order",), key="k")
    world.set_backlogs(orders=1)
    text = await world.expect(WaitedFor.WORKERS)
    assert "no worker has taken one of the 1 orders" in text
    assert f"--set tasks.turns=2 --run {world.state.directory.path}" in text
    assert await world.environment.tasks_queue.receive(timeout=5) is not None
    assert await world.watcher.find_wait() is None


async def test_a_launch_that_others_feed_waits_for_orders(make_world: WorldMaker) -> None:
    world = make_world("tasks.source=queue")
    world.add_worker(Heartbeat(ready=True))
    assert "waiting for orders on memory://" in await world.expect(WaitedFor.ORDERS)
    world.set_backlogs(orders=1)
    assert await world.watcher.find_wait() is None


async def test_an_engine_that_is_not_there_is_named(make_world: WorldMaker) -> None:
    world = make_world("engine.urls=['http://127.0.0.1:9']")
    world.add_worker(Heartbeat(ready=False))
    text = await world.expect(WaitedFor.ENGINES)
    assert "its engine does not answer: no answer from the engine at http://127.0.0.1:9/" in text


async def test_an_engine_that_accepts_and_says_nothing_is_named(
    make_world: WorldMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.launch.waiting._PROBE_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        world = make_world(f"engine.urls=['{url}']")
        world.add_worker(Heartbeat(ready=False))
        text = await world.expect(WaitedFor.ENGINES)
    assert f"{url} did not answer within 0.1 s" in text


async def test_workers_that_only_start_are_no_wait(make_world: WorldMaker) -> None:
    world = make_world()
    world.add_worker(Heartbeat(ready=False))
    assert await world.watcher.find_wait() is None


async def test_orders_that_an_earlier_launch_left_are_named(make_world: WorldMaker) -> None:
    world = make_world()
    world.feeder.leftover_count = 3
    assert "waiting for 3 orders of the earlier launch" in await world.expect(WaitedFor.EARLIER_ORDERS)


async def test_the_feeder_says_that_it_removes_orders(make_world: WorldMaker) -> None:
    world = make_world()
    queue = world.environment.tasks_queue
    assert queue is not None
    async with open_queue(queue.url, lease="record") as worker:
        await worker.put((b"held",), key="k")
        delivery = await worker.receive(timeout=5)
        assert delivery is not None
        async with anyio.create_task_group() as group:
            group.start_soon(world.feeder.remove_leftovers, 60.0)
            with anyio.fail_after(20):
                while not world.feeder.leftover_count:  # noqa: ASYNC110 - the feeder sets it
                    await anyio.sleep(0.01)
            await delivery.ack()
    assert world.feeder.leftover_count == 0


async def test_the_feeder_says_that_it_is_paced(make_world: WorldMaker) -> None:
    world = make_world()
    queue = world.environment.tasks_queue
    assert queue is not None
    policy = PolicyConfig(max_staleness=0, batch=4)
    feeder = Feeder(make_orders(2, 4), queue, world.environment.claims, policy)
    async with anyio.create_task_group() as group:
        group.start_soon(feeder.feed, 100)
        await queue.ack(await receive(queue, 4))
        with anyio.fail_after(20):
            while not feeder.is_paced:  # noqa: ASYNC110 - the feeder sets it
                await anyio.sleep(0.01)
        feeder.trainer_progress = TrainerProgress(version=1, consumed=4)
        await queue.ack(await receive(queue, 4))
    assert not feeder.is_paced


async def test_a_launch_that_ends_waits_for_nobody(make_world: WorldMaker) -> None:
    world = make_world("tasks.source=queue")
    await world.expect(WaitedFor.ORDERS)
    world.state.stop_early()
    assert await world.watcher.find_wait() is None


async def test_a_wait_is_told_once_it_lasts_then_each_minute_and_at_its_end(make_world: WorldMaker) -> None:
    world = make_world()
    wait = Wait(WaitedFor.ORDERS, "waiting for orders")
    other = Wait(WaitedFor.ENGINES, "waiting for engines")

    def told(found: Wait | None, now: float) -> list[str]:
        world.watcher._note(found, now)
        texts = [notice.text.removeprefix("color_codeword: ") for notice in world.state.notices]
        world.state.notices.clear()
        return texts

    assert told(wait, 100.0) == told(wait, 101.0) == []
    assert told(None, 101.1) == [], "a wait of a moment is not told"
    assert told(wait, 200.0) == []
    assert told(wait, 202.0) == ["waiting for orders"]
    assert world.environment.wait is wait
    assert told(wait, 203.0) == told(wait, 261.0) == []
    assert told(wait, 262.5) == ["waiting for orders"]
    assert told(other, 270.0) == ["continues after 70 s"]
    assert told(other, 272.0) == ["waiting for engines"]
    assert told(None, 275.0) == ["continues after 5 s"]
    assert world.environment.wait is None
