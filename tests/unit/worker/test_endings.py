"""Rollouts that are ended from outside, or outlive their end: deadlines, stragglers, lost groups, leftovers."""

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from rollout.config.load import Config
from rollout.environments.base import Model, Score
from rollout.records.stream import RolloutAlreadyFinished
from rollout.records.task import Task
from rollout.session.session import PolicyClient
from rollout.trainer import check
from tests.unit.worker.harness import ScriptedEnvironment, play_one_task, play_one_turn, worker_harness


async def test_a_cancellation_that_an_environment_makes_up_is_its_failure(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    async def cancels(*_: object) -> Score:
        raise anyio.get_cancelled_exc_class()()

    error = (await play_one_task(config, policy, tmp_path, cancels))["0.0"].error
    assert error is not None
    assert error["message"] == "the environment raised a cancellation of its own"


async def test_a_rollout_that_makes_no_turn_is_ended(config: Config, policy: PolicyClient, tmp_path: Path) -> None:
    async def stands_still(task: Task, model: Model) -> Score:
        await play_one_turn(task, model)
        await anyio.sleep_forever()
        raise AssertionError

    error = (await play_one_task(config, policy, tmp_path, stands_still, turn_timeout=0.5))["0.0"].error
    assert error is not None
    assert error["message"] == "no turn was done for 0.5 s (worker.turn_timeout), after 1 turns"


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        ({"stragglers": "cut", "straggler_grace": 0.2}, "unscored"),
        ({"stragglers": "abandon", "straggler_grace": 0.2}, "abandoned"),
    ],
)
async def test_the_last_of_a_group_is_treated_as_configured(
    config: Config, policy: PolicyClient, tmp_path: Path, rule: dict[str, object], status: str
) -> None:
    async def by_sample(task: Task, model: Model) -> Score:
        if ScriptedEnvironment.runs_started == 1:
            await play_one_turn(task, model)
            await anyio.sleep_forever()
        return await play_one_turn(task, model)

    config = replace(config, policy=config.policy.model_copy(update=rule))
    ended = await play_one_task(config, policy, tmp_path, by_sample, group_size=3, concurrency=2)
    assert sorted(trajectory.status for trajectory in ended.values() if trajectory.status == status) == [status]


async def test_what_is_left_of_a_lost_group_is_abandoned_also_what_had_not_begun(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    async def second_is_lost(task: Task, model: Model) -> Score:
        if ScriptedEnvironment.runs_started == 2:
            raise ValueError("lost")
        await anyio.sleep_forever()
        raise AssertionError

    config = replace(config, policy=config.policy.model_copy(update={"partial_groups": "cancel"}))
    ended = await play_one_task(config, policy, tmp_path, second_is_lost, group_size=4, concurrency=2)
    assert Counter(trajectory.status for trajectory in ended.values()) == {"failed": 1, "abandoned": 3}
    assert ScriptedEnvironment.runs_started == 2


async def test_a_rollout_that_does_not_let_itself_be_ended_is_left_behind(
    config: Config, policy: PolicyClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.worker.running._CLEANUP_TIMEOUT", 0.1)
    go = anyio.Event()

    async def stubborn(*_: object) -> Score:
        while not go.is_set():
            with suppress(asyncio.CancelledError):
                await go.wait()
        return Score(1.0)

    async with worker_harness(config, policy, tmp_path, stubborn, rollout_timeout=0.1) as harness:
        async with anyio.create_task_group() as group:
            group.start_soon(harness.worker.run)
            await harness.put_orders(1)
            error = (await harness.receive_ended(1))["0.0"].error
            harness.worker.drain()
        go.set()
    assert error is not None
    assert error["type"] == "RolloutTimeout"


async def test_what_a_rollout_left_running_cannot_ask_the_model_any_more(
    config: Config, policy: PolicyClient, tmp_path: Path
) -> None:
    left: list[asyncio.Task[Score]] = []
    over = anyio.Event()

    async def leaves_a_task(task: Task, model: Model) -> Score:
        async def later() -> Score:
            await over.wait()
            return await play_one_turn(task, model)

        left.append(asyncio.ensure_future(later()))
        return await play_one_turn(task, model)

    async with worker_harness(config, policy, tmp_path, leaves_a_task) as harness, anyio.create_task_group() as group:
        group.start_soon(harness.worker.run)
        await harness.put_orders(1)
        trajectory = (await harness.receive_ended(1))["0.0"]
        over.set()
        with pytest.raises(RolloutAlreadyFinished, match="but a task of its environment still calls"):
            await left[0]
        harness.worker.drain()
    assert check(trajectory) == []
