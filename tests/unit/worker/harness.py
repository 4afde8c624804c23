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
from rollout.session.policy import PolicyClient
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
    """A worker, its queues and its claims."""

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
            while (await self.tasks.stats()).backlog_records:  # noqa: ASYNC110 - the worker changes it
                await anyio.sleep(0.01)


@dataclass(frozen=True)
class WorkerFactory:
    """Makes workers in this process, on queues in memory, that play a coroutine with a small engine."""

    config: Config
    policy: PolicyClient
    directory: Path

    @asynccontextmanager
    async def open(self, play: Any, **worker: object) -> AsyncIterator[WorkerHarness]:
        """Yield a worker that plays nothing yet. `worker` changes its section of the configuration."""
        ScriptedEnvironment.play, ScriptedEnvironment.runs_started = play, 0
        config = replace(self.config, worker=self.config.worker.model_copy(update=worker))
        name = self.directory.name
        async with (
            open_queue(f"memory://{name}-tasks", lease="record") as tasks,
            open_queue(f"memory://{name}-trajectories") as trajectories,
            TrajectoryReader(open_queue(f"memory://{name}-trajectories")) as reader,
        ):
            claims = Claims(self.directory / "claims")
            metadata = build_run_metadata(config, "test")
            yield WorkerHarness(
                Worker(config, self.policy, metadata, claims, tasks, trajectories), tasks, reader, claims
            )

    @asynccontextmanager
    async def run(self, play: Any, **worker: object) -> AsyncIterator[WorkerHarness]:
        """Yield a worker that plays. It is drained at the end."""
        async with self.open(play, **worker) as harness, anyio.create_task_group() as group:
            group.start_soon(harness.worker.run)
            yield harness
            harness.worker.drain()

    async def play_one_task(self, play: Any, *, group_size: int = 1, **worker: object) -> Mapping[str, Trajectory]:
        """Play the rollouts of one task; return their trajectories by the names of the rollouts."""
        async with self.run(play, **worker) as harness:
            await harness.put_orders(1, group_size)
            ended = await harness.receive_ended(group_size)
            await harness.wait_until_acked()
        return ended


async def play_one_turn(_: Task, model: Model) -> Score:
    await model.chat(list(QUESTION))
    return Score(1.0)
