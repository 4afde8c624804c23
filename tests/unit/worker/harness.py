"""A worker in this process, with an environment that plays whatever coroutine a test gives it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import anyio

from rollout.config.load import Config
from rollout.environments.base import Environment, Model, Score
from rollout.records.task import Task
from rollout.rundir.claims import Claims
from rollout.session.session import PolicyClient
from rollout.tasks.orders import RolloutOrder, encode_order
from rollout.trainer import Trajectory, TrajectoryReader
from rollout.worker.setup import build_run_metadata
from rollout.worker.worker import Worker
from transports import Queue, open_queue

QUESTION = [{"role": "user", "content": "Heads or tails?"}]


class ScriptedEnvironment(Environment):
    """Plays the coroutine that a test gives it."""

    play: ClassVar[Any]
    runs_started: ClassVar[int]

    async def run(self, task: Task, model: Model) -> Score:
        type(self).runs_started += 1
        return await type(self).play(task, model)  # type: ignore[no-any-return]


@dataclass
class WorkerHarness:
    worker: Worker
    tasks: Queue
    reader: TrajectoryReader
    claims: Claims

    async def put_orders(self, count: int, group_size: int = 1, *, first: int = 0) -> None:
        for index in range(first, first + count):
            for sample in range(group_size):
                order = RolloutOrder(Task(id=str(index), index=index, seed=index), sample, group_size)
                await self.tasks.put(encode_order(order), key=order.rollout_id)

    async def receive_ended(self, count: int) -> Mapping[str, Trajectory]:
        found: dict[str, Trajectory] = {}
        with anyio.fail_after(20):
            while len(found) < count:
                if (trajectory := await self.reader.receive(timeout=0.1)) is not None:
                    assert trajectory.rollout not in found
                    found[trajectory.rollout] = trajectory
        return found

    async def wait_until_acked(self) -> None:
        with anyio.fail_after(20):
            while (await self.tasks.stats()).backlog_records:  # noqa: ASYNC110 - it is another's to change
                await anyio.sleep(0.01)


@asynccontextmanager
async def worker_harness(
    config: Config, policy: PolicyClient, directory: Path, play: Any, **worker: object
) -> AsyncIterator[WorkerHarness]:
    ScriptedEnvironment.play, ScriptedEnvironment.runs_started = play, 0
    config = replace(config, worker=config.worker.model_copy(update=worker))
    name = directory.name
    async with (
        open_queue(f"memory://{name}-tasks", lease="record") as tasks,
        open_queue(f"memory://{name}-trajectories") as trajectories,
        TrajectoryReader(open_queue(f"memory://{name}-trajectories")) as reader,
    ):
        claims = Claims(directory / "claims")
        yield WorkerHarness(
            Worker(config, policy, build_run_metadata(config, "test"), claims, tasks, trajectories),
            tasks,
            reader,
            claims,
        )


async def play_one_task(
    config: Config, policy: PolicyClient, directory: Path, play: Any, *, group_size: int = 1, **worker: object
) -> Mapping[str, Trajectory]:
    """How the rollouts of one task end, by their names, once their orders are settled."""
    async with worker_harness(config, policy, directory, play, **worker) as harness, anyio.create_task_group() as group:
        group.start_soon(harness.worker.run)
        await harness.put_orders(1, group_size)
        ended = await harness.receive_ended(group_size)
        await harness.wait_until_acked()
        harness.worker.drain()
    return ended


async def play_one_turn(_: Task, model: Model) -> Score:
    await model.chat(list(QUESTION))
    return Score(1.0)
