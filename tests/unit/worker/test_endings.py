"""Rollouts that the worker ends: deadlines, stragglers, lost groups, and tasks that a rollout leaves running."""

import asyncio
from collections import Counter
from dataclasses import replace

import anyio
import pytest

from rollout.environments.base import Model, Score
from rollout.records.stream import RolloutAlreadyFinished
from rollout.records.task import Task
from rollout.trainer import check
from tests.unit.worker.harness import ScriptedEnvironment, WorkerFactory, play_one_turn


def with_policy(workers: WorkerFactory, **changed: object) -> WorkerFactory:
    """Return a factory with other values in the section `policy`."""
    config = workers.config
    return replace(workers, config=replace(config, policy=config.policy.model_copy(update=changed)))


async def test_a_rollout_that_plays_no_turn_for_too_long_is_ended(workers: WorkerFactory) -> None:
    async def hang(task: Task, model: Model) -> Score:
        await play_one_turn(task, model)
        await anyio.sleep_forever()
        raise AssertionError

    error = (await workers.play_one_task(hang, turn_timeout=0.5))["0.0"].error
    assert error is not None
    message = "the rollout completed no turn for 0.5 s (worker.turn_timeout); it had completed 1 turns before"
    assert error["message"] == message


@pytest.mark.parametrize(("stragglers", "status"), [("cut", "unscored"), ("abandon", "abandoned")])
async def test_the_last_rollout_of_a_group_ends_as_configured(
    workers: WorkerFactory, stragglers: str, status: str
) -> None:
    async def hang_first(task: Task, model: Model) -> Score:
        if ScriptedEnvironment.runs_started == 1:
            await play_one_turn(task, model)
            await anyio.sleep_forever()
        return await play_one_turn(task, model)

    workers = with_policy(workers, stragglers=stragglers, straggler_grace=0.2)
    ended = await workers.play_one_task(hang_first, group_size=3, concurrency=2)
    assert sorted(trajectory.status for trajectory in ended.values() if trajectory.status == status) == [status]


async def test_the_rest_of_a_lost_group_is_abandoned_even_if_it_has_not_begun(workers: WorkerFactory) -> None:
    async def lose_second(task: Task, model: Model) -> Score:
        if ScriptedEnvironment.runs_started == 2:
            raise ValueError("lost")
        await anyio.sleep_forever()
        raise AssertionError

    workers = with_policy(workers, partial_groups="cancel")
    ended = await workers.play_one_task(lose_second, group_size=4, concurrency=2)
    assert Counter(trajectory.status for trajectory in ended.values()) == {"failed": 1, "abandoned": 3}
    assert ScriptedEnvironment.runs_started == 2


async def test_a_task_that_a_rollout_leaves_running_cannot_ask_the_model(workers: WorkerFactory) -> None:
    left: list[asyncio.Task[Score]] = []
    over = anyio.Event()

    async def leave_task(task: Task, model: Model) -> Score:
        async def later() -> Score:
            await over.wait()
            return await play_one_turn(task, model)

        left.append(asyncio.ensure_future(later()))
        return await play_one_turn(task, model)

    async with workers.run(leave_task) as harness:
        await harness.put_orders(1)
        trajectory = (await harness.receive_ended(1))["0.0"]
        over.set()
        with pytest.raises(RolloutAlreadyFinished, match="but a task of its environment still calls"):
            await left[0]
    assert check(trajectory) == []
