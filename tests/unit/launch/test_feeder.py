"""The feeder sends whole groups, at the pace of the trainer, and no order of a finished rollout."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.config.sections import PolicyConfig
from rollout.errors import ConfigurationError
from rollout.launch.feeder import Feeder, OrdersLeft, remaining_capacity
from rollout.records.progress import ProgressFollower, ProgressPublisher, TrainerProgress
from rollout.records.task import Task
from rollout.rundir.claims import Claims, Outcome
from rollout.tasks.orders import RolloutOrder, decode_order
from transports import Delivery, Frames, Queue, open_queue
from transports.codec import encode

UNPACED = PolicyConfig()


def make_orders(count: int, size: int) -> list[RolloutOrder]:
    tasks = [Task(id=f"{index}", index=index, seed=index) for index in range(count)]
    return [RolloutOrder(task, sample, size) for task in tasks for sample in range(size)]


@pytest.fixture
async def tasks(tmp_path: Path) -> AsyncIterator[Queue]:
    async with open_queue(f"memory://{tmp_path.name}", lease="record") as queue:
        yield queue


async def receive(queue: Queue, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    with anyio.fail_after(20):
        while len(found) < count:
            if (delivery := await queue.receive(timeout=0.1)) is not None:
                found.append(delivery)
    return found


async def assert_nothing_comes(queue: Queue) -> None:
    assert await queue.receive(timeout=0.4) is None


@given(
    staleness=st.integers(0, 4),
    batch=st.integers(1, 64),
    version=st.integers(0, 50),
    discarded=st.integers(0, 20),
    extra=st.integers(0, 500),
)
def test_the_capacity_rule_bounds_how_stale_a_rollout_can_become(
    staleness: int, batch: int, version: int, discarded: int, extra: int
) -> None:
    policy = PolicyConfig(max_staleness=staleness, batch=batch)
    progress = TrainerProgress(version=version, consumed=version * batch, discarded=discarded)
    sent = progress.consumed + discarded + extra
    room = remaining_capacity(policy, progress, sent)
    assert room is not None
    in_flight = extra + room
    assert in_flight == (staleness + version + 1) * batch - progress.consumed
    # If they are consumed in order, the last one in flight is trained on after at most `staleness` versions.
    assert (in_flight - 1) // batch <= staleness


def test_without_max_staleness_the_capacity_is_unlimited() -> None:
    assert remaining_capacity(UNPACED, TrainerProgress(), 10**9) is None


async def test_whole_groups_are_sent_as_the_trainer_advances(tmp_path: Path, tasks: Queue) -> None:
    feeder = Feeder(make_orders(5, 4), tasks, Claims(tmp_path), PolicyConfig(max_staleness=0, batch=8))
    async with anyio.create_task_group() as group:
        group.start_soon(feeder.feed, 100)
        first = await receive(tasks, 8)
        await assert_nothing_comes(tasks)
        feeder.trainer_progress = TrainerProgress(version=0, consumed=0, discarded=3)
        await assert_nothing_comes(tasks)
        feeder.trainer_progress = TrainerProgress(version=0, consumed=0, discarded=4)
        second = await receive(tasks, 4)
        feeder.trainer_progress = TrainerProgress(version=1, consumed=8, discarded=4)
        third = await receive(tasks, 8)
        await assert_nothing_comes(tasks)
        versions = [{decode_order(d.frames).policy_version for d in part} for part in (first, second, third)]
        assert versions == [{None}, {"0"}, {"1"}]
        await tasks.ack([*first, *second, *third])
    assert feeder.all_finished
    assert feeder.rollouts_sent == 20


async def test_at_most_one_window_of_orders_waits(tmp_path: Path, tasks: Queue) -> None:
    feeder = Feeder(make_orders(50, 2), tasks, Claims(tmp_path), UNPACED)
    async with anyio.create_task_group() as group:
        group.start_soon(feeder.feed, 10)
        received = 0
        while received < 100:
            assert (await tasks.stats()).backlog_records <= 11
            for delivery in await receive(tasks, 2):
                await delivery.ack()
                received += 1
    assert feeder.all_finished


async def test_finished_rollouts_are_not_sent_and_leftover_orders_are_replaced(tmp_path: Path, tasks: Queue) -> None:
    claims = Claims(tmp_path)
    for rollout in ("0.0", "0.1", "1.1"):
        number = claims.claim_next_attempt(rollout).attempt_number
        claims.record_outcome(Outcome(rollout=rollout, group=rollout[0], attempt=number, status="ok"))
    await tasks.put((b"left over",), key="k")
    feeder = Feeder(make_orders(3, 2), tasks, claims, UNPACED)
    await feeder.remove_leftovers(60.0)
    assert (await tasks.stats()).backlog_records == 0
    async with anyio.create_task_group() as group:
        group.start_soon(feeder.feed, 100)
        sent = await receive(tasks, 3)
        await assert_nothing_comes(tasks)
        assert [decode_order(delivery.frames).rollout_id for delivery in sent] == ["1.0", "2.0", "2.1"]
        await tasks.ack(sent)
    assert feeder.rollouts_sent == 6


async def test_orders_of_another_run_are_refused_and_kept(tmp_path: Path, tasks: Queue) -> None:
    feeder = Feeder(make_orders(1, 1), tasks, Claims(tmp_path), UNPACED)
    await feeder.require_empty()
    await tasks.put((b"another's",), key="k")
    with pytest.raises(OrdersLeft, match="holds 1 orders of another run"):
        await feeder.require_empty()
    assert (await tasks.stats()).backlog_records == 1


async def test_orders_that_a_worker_keeps_from_an_earlier_launch_are_an_error(tmp_path: Path, tasks: Queue) -> None:
    await tasks.put((b"left over",), key="k")
    await receive(tasks, 1)
    async with open_queue(tasks.url, lease="record") as launched:
        with pytest.raises(OrdersLeft, match="a worker still holds orders of the earlier launch"):
            await Feeder(make_orders(1, 1), launched, Claims(tmp_path), UNPACED).remove_leftovers(0.2)


async def test_a_group_that_is_larger_than_a_batch_is_refused(tmp_path: Path, tasks: Queue) -> None:
    feeder = Feeder(make_orders(1, 8), tasks, Claims(tmp_path), PolicyConfig(max_staleness=1, batch=4))
    with pytest.raises(ConfigurationError, match=r"task 0 has 8 rollouts, but policy\.batch is only 4"):
        await feeder.feed(100)


async def test_a_new_launch_begins_with_the_latest_progress_of_the_trainer(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    async with ProgressPublisher(url) as publisher:
        for version in range(3):
            await publisher.publish(TrainerProgress(version=version, consumed=8 * version))
        for _ in range(2):
            async with open_queue(url) as queue:
                follower = ProgressFollower(queue)
                with anyio.fail_after(20):
                    while follower.latest.version < 2:
                        await follower.poll(timeout=0.1)
                assert follower.latest == TrainerProgress(version=2, consumed=16)
                assert (await queue.stats()).backlog_records == 1


@pytest.mark.parametrize(
    "frames", [(b"not a record",), encode({"version": float("inf"), "consumed": 0, "discarded": 0}), encode([1])]
)
async def test_a_record_that_is_not_progress_becomes_a_dead_letter(tmp_path: Path, frames: Frames) -> None:
    async with open_queue(f"memory://{tmp_path.name}-control") as queue:
        await queue.put(frames, key="progress")
        follower = ProgressFollower(queue)
        assert not await follower.poll(timeout=5)
        assert follower.latest == TrainerProgress()
        assert (await queue.stats()).dead_letters == 1
