"""`rollout run`: engine, worker and a consuming reader together, from a configuration to a summary."""

import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import structlog

from renderers_adapter.errors import AdapterError
from rollout.config.load import Config
from rollout.errors import RolloutError, first_failure
from rollout.log import json_log
from rollout.metrics.export import Export, exporting
from rollout.metrics.server import Announcement
from rollout.metrics.worker import WorkerMetrics
from rollout.rundir.claims import Claims
from rollout.rundir.directory import RunDirectory, new_run
from rollout.session.session import Policy
from rollout.tasks.orders import RolloutOrder, encode_order, orders
from rollout.trainer import GroupAssembler, Trajectory, TrajectoryReader, Violation, check, samples
from rollout.trainer.metrics import ReaderCollector
from rollout.worker.setup import engine_urls, open_policy, run_facts
from rollout.worker.worker import Worker, WorkerCounters
from transports import Queue, QueueError, open_queue

log = structlog.get_logger()

_DRAIN_TIMEOUT = 60.0
_COMMIT_EVERY = 64
_TICK = 0.1
_STALLED = 120.0
"""Seconds without a turn of the event loop after which the process is not well."""


class QueueInUse(RolloutError):
    """The queue for the trajectories is not empty."""


class TrajectoriesLost(RolloutError):
    """Finished rollouts did not reach the reader."""


@dataclass(slots=True)
class TrainerCounters:
    """What the consuming reader saw."""

    trajectories: int = 0
    groups: int = 0
    samples: int = 0
    tokens: int = 0
    rewards: list[float] = field(default_factory=list)
    metrics: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    failures: list[Trajectory] = field(default_factory=list)
    assembler: GroupAssembler[Trajectory] = field(default_factory=GroupAssembler)

    def add(self, trajectory: Trajectory) -> None:
        """Check a trajectory and turn it into samples, as a trainer would."""
        self.trajectories += 1
        self.violations += check(trajectory)
        self.groups += self.assembler.add(trajectory) is not None
        if trajectory.error is not None:
            self.failures.append(trajectory)
        if trajectory.trainable:
            self.rewards.append(float(trajectory.reward or 0.0))
            self.metrics.update(trajectory.metrics)
            for sample in samples(trajectory):
                self.samples += 1
                self.tokens += len(sample.token_ids)


@dataclass(slots=True)
class RunState:
    """A run while it goes on; whoever shows progress reads it."""

    directory: RunDirectory
    total: int
    engine: str = ""
    worker: WorkerCounters = field(default_factory=WorkerCounters)
    trainer: TrainerCounters = field(default_factory=TrainerCounters)
    interrupted: bool = False
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def report(self) -> dict[str, Any]:
        """The summary, as `--json` prints it."""
        rewards = self.trainer.rewards
        return {
            "rollouts": self.trainer.trajectories,
            "status": dict(self.worker.status),
            "reward_mean": math.fsum(rewards) / len(rewards) if rewards else None,
            "turns": self.worker.turns,
            "images": self.worker.images,
            "queue_bytes": self.worker.queue_bytes,
            "trainer": {
                "trajectories": self.trainer.trajectories,
                "samples": self.trainer.samples,
                "tokens": self.trainer.tokens,
                "violations": len(self.trainer.violations),
            },
            "run_dir": str(self.directory.path),
            "seconds": round(self.seconds, 3),
        }


def prepare_run(config: Config) -> RunState:
    """Name a run and make its directory. Raises RolloutError where it cannot be made."""
    directory = new_run(config.run.directory, config.run.name)
    directory.keep_config(config, "config.yaml")
    return RunState(directory, config.tasks.count * config.tasks.group_size)


Companion = Callable[["RunState", anyio.Event], Coroutine[Any, Any, None]]
"""Runs beside a run: shows its state, and sets the event when the user wants to stop."""


def run(config: Config, state: RunState, companion: Companion) -> None:
    """Play every rollout of the configuration.

    Raises:
        RolloutError, QueueError, AdapterError: the run could not begin, or its infrastructure failed for good.
    """
    with state.directory.held(), json_log(state.directory.path / "log.jsonl", run=state.directory.run):
        try:
            anyio.run(_run, config, state, companion)
        except BaseExceptionGroup as group:
            raise first_failure(group, (RolloutError, QueueError, AdapterError)) from None
        finally:
            state.seconds = time.monotonic() - state.began
            log.info("run ended", **state.report())


async def _run(config: Config, state: RunState, companion: Companion) -> None:
    stop = anyio.Event()
    ordered = list(orders(config.new_environment, config.tasks))
    state.total = len(ordered)
    failure: BaseException | None = None
    async with anyio.create_task_group() as outer:
        outer.start_soon(companion, state, stop)
        async with AsyncExitStack() as stack:
            metrics = WorkerMetrics(config.run.name)
            export = await stack.enter_async_context(_exporting(config, state, metrics))
            tasks_url = f"memory://{state.directory.run}-tasks"
            url = state.directory.url(config.queue.url, config.run.name)
            tasks = await stack.enter_async_context(open_queue(tasks_url, lease="record"))
            trajectories = await stack.enter_async_context(open_queue(url))
            await _refuse_leftovers(trajectories)
            reader = await stack.enter_async_context(TrajectoryReader(open_queue(url)))
            metrics.registry.register(
                ReaderCollector(reader, export.watch(config.run.name, "trajectories", trajectories))
            )
            playing = anyio.CancelScope()
            outer.start_soon(_cancel_on, stop, playing)
            workers: list[Worker] = []
            try:
                with playing:
                    async with _policy(config, state, metrics) as policy:
                        claims = Claims(state.directory.claims(config.run.name))
                        worker = Worker(
                            config, policy, run_facts(config, state.directory.run), claims, tasks, trajectories
                        )
                        workers.append(worker)
                        state.worker = worker.counters
                        metrics.read(worker.counters, policy.engine, policy.version)
                        export.unready = lambda: None
                        async with anyio.create_task_group() as working:
                            working.start_soon(_feed, ordered, tasks)
                            working.start_soon(worker.run)
                            await _consume(reader, state)
                            working.cancel_scope.cancel()
            except (BaseExceptionGroup, RolloutError, QueueError, AdapterError) as error:
                failure = first_failure(error, (RolloutError, QueueError, AdapterError))
            state.interrupted = stop.is_set()
            with anyio.move_on_after(_DRAIN_TIMEOUT):
                await _wind_up(workers, reader, state)
        outer.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _refuse_leftovers(trajectories: Queue) -> None:
    """What another run left would be counted here, and acked."""
    backlog = (await trajectories.stats()).backlog_records
    if backlog:
        raise QueueInUse(
            f"{trajectories.url} holds {backlog} records of another run. Let its trainer read them, empty it with "
            "`rollout queue drain`, or name another queue in queue.url."
        )


async def _feed(ordered: list[RolloutOrder], tasks: Queue) -> None:
    for order in ordered:
        await tasks.admit()
        await tasks.put(encode_order(order), key=order.rollout, tag=order.rollout)


async def _cancel_on(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()


async def _consume(reader: TrajectoryReader, state: RunState) -> None:
    last = time.monotonic()
    while state.trainer.trajectories < state.total:
        if (trajectory := await reader.receive(timeout=_TICK)) is not None:
            last = time.monotonic()
            state.trainer.add(trajectory)
            if state.trainer.trajectories % _COMMIT_EVERY == 0:
                await _commit(reader)
        elif state.worker.finished < state.total:
            last = time.monotonic()
        elif time.monotonic() - last > _DRAIN_TIMEOUT:
            raise TrajectoriesLost(
                f"{state.worker.finished} rollouts have finished, only {state.trainer.trajectories} came out of the "
                f"queue, and nothing for {_DRAIN_TIMEOUT:g} s. Does another reader consume it?"
            )


async def _wind_up(workers: list[Worker], reader: TrajectoryReader, state: RunState) -> None:
    """What was in flight is abandoned, and what had finished when the run was stopped still counts."""
    for worker in workers:
        await worker.abandon()
    while state.trainer.trajectories < state.worker.finished:
        if (trajectory := await reader.receive(timeout=_TICK)) is not None:
            state.trainer.add(trajectory)
    await _commit(reader)


async def _commit(reader: TrajectoryReader) -> None:
    reader.state_dict()  # a trainer would save this with its weights, here
    await reader.commit()


def _exporting(config: Config, state: RunState, metrics: WorkerMetrics) -> AbstractAsyncContextManager[Export]:
    announcement = Announcement(state.directory.metrics, "run", {"run": state.directory.run})
    return exporting(metrics.registry, announcement, config.metrics, pulse=metrics.pulse, patience=_STALLED)


@asynccontextmanager
async def _policy(config: Config, state: RunState, metrics: WorkerMetrics) -> AsyncIterator[Policy]:
    with ExitStack() as engines:

        def urls() -> tuple[str, ...]:
            found = engine_urls(config, state.directory, engines)
            told = ", ".join(found)
            state.engine = told if config.engine.urls else f"embedded (scripted, no neural network), {told}"
            return found

        async with open_policy(config, state.directory, urls, metrics) as policy:
            yield policy
