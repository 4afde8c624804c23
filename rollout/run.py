"""`rollout run`: engine, worker and a consuming reader together, from a configuration to a summary."""

import fcntl
import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import structlog
import yaml

from renderers_adapter.errors import AdapterError
from renderers_adapter.pool import RendererPool, shared_pool
from rollout.config import Config
from rollout.engine.configured import engine_client
from rollout.errors import RolloutError
from rollout.images import ImagePolicy
from rollout.session import Policy
from rollout.tasks import RolloutOrder, encode_order, orders
from rollout.telemetry import json_log
from rollout.trainer import GroupAssembler, Trajectory, TrajectoryReader, Violation, check, samples
from rollout.worker import Worker, WorkerCounters
from transports import Queue, QueueError, open_queue

log = structlog.get_logger()

_START_TIMEOUT = 60.0
_DRAIN_TIMEOUT = 60.0
_COMMIT_EVERY = 64
_TICK = 0.1


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
    assembler: GroupAssembler = field(default_factory=GroupAssembler)

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

    run: str
    directory: Path
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
            "run_dir": str(self.directory),
            "seconds": round(self.seconds, 3),
        }


def prepare_run(config: Config) -> RunState:
    """Name a run and make its directory. Raises RolloutError where it cannot be made."""
    run = f"{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    directory = config.run.directory / run
    try:
        (directory / "assets" / "images").mkdir(parents=True)
        resolved = yaml.safe_dump(config.dump(), sort_keys=False, allow_unicode=True)
        (directory / "config.yaml").write_text(resolved, "utf-8")
    except OSError as error:
        raise RolloutError(f"{directory}: the run's directory cannot be made: {error.strerror}.") from None
    return RunState(run, directory, config.tasks.count * config.tasks.group_size)


Companion = Callable[["RunState", anyio.Event], Coroutine[Any, Any, None]]
"""Runs beside a run: shows its state, and sets the event when the user wants to stop."""


def run(config: Config, state: RunState, companion: Companion) -> None:
    """Play every rollout of the configuration.

    Raises:
        RolloutError, QueueError, AdapterError: the run could not begin, or its infrastructure failed for good.
    """
    with _held(state.directory), json_log(state.directory / "log.jsonl", run=state.run):
        try:
            anyio.run(_run, config, state, companion)
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            state.seconds = time.monotonic() - state.began
            log.info("run ended", **state.report())


async def _run(config: Config, state: RunState, companion: Companion) -> None:
    stop = anyio.Event()
    ordered = list(orders(config.environment(config.settings), config.tasks))
    state.total = len(ordered)
    async with anyio.create_task_group() as outer:
        outer.start_soon(companion, state, stop)
        async with _policy(config, state) as policy, AsyncExitStack() as stack:
            tasks_url, url = f"memory://{state.run}-tasks", trajectories_url(config, state.directory)
            tasks = await stack.enter_async_context(open_queue(tasks_url, lease="record"))
            trajectories = await stack.enter_async_context(open_queue(url))
            reader = await stack.enter_async_context(TrajectoryReader(open_queue(url)))
            worker = Worker(config, policy, state.run, tasks, trajectories)
            state.worker = worker.counters
            async with anyio.create_task_group() as working:
                working.start_soon(_feed, ordered, tasks)
                working.start_soon(worker.run)
                working.start_soon(_cancel_on, stop, working.cancel_scope)
                await _consume(reader, state)
                working.cancel_scope.cancel()
            state.interrupted = state.trainer.trajectories < state.total
            with anyio.move_on_after(_DRAIN_TIMEOUT):
                await _drain(reader, state)
        outer.cancel_scope.cancel()


async def _feed(ordered: list[RolloutOrder], tasks: Queue) -> None:
    for order in ordered:
        await tasks.admit()
        await tasks.put(encode_order(order), key=order.rollout, tag=order.rollout)


async def _cancel_on(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()


async def _consume(reader: TrajectoryReader, state: RunState) -> None:
    while state.trainer.trajectories < state.total:
        if (trajectory := await reader.receive(timeout=_TICK)) is not None:
            state.trainer.add(trajectory)
            if state.trainer.trajectories % _COMMIT_EVERY == 0:
                await _commit(reader)


async def _drain(reader: TrajectoryReader, state: RunState) -> None:
    """What had finished when the run was stopped still counts."""
    while state.trainer.trajectories < state.worker.finished:
        if (trajectory := await reader.receive(timeout=_TICK)) is not None:
            state.trainer.add(trajectory)
    await _commit(reader)


async def _commit(reader: TrajectoryReader) -> None:
    reader.state_dict()  # a trainer would save this with its weights, here
    await reader.commit()


@asynccontextmanager
async def _policy(config: Config, state: RunState) -> AsyncIterator[Policy]:
    """The policy, ready: the renderer warms up in a thread while the engine starts."""
    async with AsyncExitStack() as stack:
        renderers: RendererPool | None = None

        async def open_renderers() -> None:
            nonlocal renderers
            renderers = await anyio.to_thread.run_sync(shared_pool, config.model.path, config.model.renderer)

        urls = config.engine.urls
        with _deadline("the renderer and the engine"):
            async with anyio.create_task_group() as starting:
                starting.start_soon(open_renderers)
                if not urls:
                    urls = (await anyio.to_thread.run_sync(_start_embedded, config, state.directory, stack),)
        assert renderers is not None
        state.engine = ", ".join(urls) if config.engine.urls else f"embedded (scripted, no neural network), {urls[0]}"
        engine = await stack.enter_async_context(engine_client(config, urls))
        await engine.check()
        images = ImagePolicy(
            mode=config.images.mode,
            directory=state.directory / "assets" / "images",
            allow=config.images.allow,
            max_bytes=config.images.max_bytes,
            max_pixels=config.images.max_pixels,
        )
        yield Policy(renderers, engine, images, config.engine.sampling.model_dump())


def trajectories_url(config: Config, directory: Path) -> str:
    """The queue's URL, with the run's directory filled in."""
    return config.queue.url.replace("{run_dir}", quote(str(directory)))


def _start_embedded(config: Config, directory: Path, stack: AsyncExitStack) -> str:
    from rollout.serving.engine import EmbeddedSettings
    from rollout.serving.server import EmbeddedServer

    embedded = config.engine.embedded
    server = EmbeddedServer(
        EmbeddedSettings(
            model_dir=config.model.path,
            model_name=config.model.name,
            policy=embedded.policy,
            max_model_len=embedded.max_model_len,
            weight_version=config.policy.version,
            allowed_directories=(directory / "assets",),
            latency_ms=embedded.latency_ms,
        )
    )
    stack.callback(server.stop)
    return server.start()


@contextmanager
def _deadline(what: str) -> Iterator[None]:
    try:
        with anyio.fail_after(_START_TIMEOUT):
            yield
    except TimeoutError:
        raise RolloutError(f"{what} did not start within {_START_TIMEOUT:g} s.") from None


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Hold the run's directory, so that nothing is cleared away under a run."""
    with (directory / "run.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person should read: a group of one, or the first of ours in it."""
    ours = (RolloutError, QueueError, AdapterError)
    leaves = list(_leaves(group))
    return next((leaf for leaf in leaves if isinstance(leaf, ours)), leaves[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
