"""`rollout launch`: worker processes for one or several environments, fed, supervised, and drained at the end.

The run's directory holds everything that a launch needs to be continued: which configurations it was begun with, and
the claims, which say what is done.
"""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread
import structlog
from prometheus_client.registry import CollectorRegistry

from renderers_adapter.errors import AdapterError
from rollout.config.load import Config
from rollout.environments.base import QUEUE
from rollout.errors import ConfigurationError, RolloutError, first_failure
from rollout.launch.feeder import Feeder
from rollout.launch.places import Place
from rollout.launch.supervisor import Fleet, Post, RestartBudget
from rollout.log import json_log
from rollout.metrics.export import Export, exporting
from rollout.metrics.launch import LaunchCollector, LaunchFigures
from rollout.metrics.loop_monitor import Pulse
from rollout.metrics.queues import QueueWatch
from rollout.metrics.server import Announcement
from rollout.records.progress import Progress, ProgressFollower
from rollout.rundir.claims import Claims, Outcome
from rollout.rundir.directory import RunDirectory
from rollout.rundir.manifest import Member
from rollout.rundir.outcomes import Ended
from rollout.tasks.orders import orders
from rollout.worker.link import Orders
from rollout.worker.setup import engine_urls
from transports import Queue, QueueError, open_queue

log = structlog.get_logger()

_LOOK = 1.0
_LEASE_LAPSES = 60.0
_ELSEWHERE = 64
"""Workers for which orders are kept waiting where all of them were started by somebody else."""
_STALLED = 120.0
"""Seconds without a turn of the supervisor's event loop after which it is not well."""


@dataclass(slots=True)
class EnvironmentState:
    """One environment of a launch, while it goes on."""

    member: Member
    claims: Claims
    total: int = 0
    feeder: Feeder | None = None
    engines: tuple[str, ...] = ()
    posts: list[Post] = field(default_factory=list)
    ended: Ended = field(init=False)
    control: Queue | None = None
    progress: Progress | None = None
    backlog: QueueWatch | None = None

    def __post_init__(self) -> None:
        self.ended = Ended(self.claims)

    @property
    def backlog_bytes(self) -> int:
        return self.backlog.latest.backlog_bytes if self.backlog is not None else 0

    @property
    def name(self) -> str:
        return self.member.config.run.name

    @property
    def fed_by_others(self) -> bool:
        """Whether its orders are put by somebody else; it then goes on until it is stopped."""
        return self.member.config.tasks.source == QUEUE

    @property
    def totals(self) -> Counter[str]:
        """What its workers did in this launch."""
        found: Counter[str] = Counter()
        for post in self.posts:
            found.update(post.totals)
        return found

    @property
    def in_flight(self) -> int:
        return sum(post.beat.in_flight for post in self.posts)

    @property
    def ready(self) -> int:
        return sum(post.beat.ready for post in self.posts)


class Launch:
    """A launch while it goes on; whoever shows progress reads it, and may end it by `stop_early` and `kill`.

    `resumes` says that orders on the tasks queue are those of an earlier launch of this run.
    """

    def __init__(
        self, directory: RunDirectory, members: Sequence[Member], workers: int, place: Place, *, resumes: bool
    ) -> None:
        self.resumes = resumes
        self.place = place
        self.directory = directory
        self.environments = [EnvironmentState(m, Claims(directory.claims(m.config.run.name))) for m in members]
        self.workers = workers
        self.fleet: Fleet | None = None
        self.opening: anyio.CancelScope | None = None
        self.stopping_early = False
        self.began = time.monotonic()
        self.seconds = 0.0

    def stop_early(self) -> None:
        """Let the workers finish what they began, and nothing else; where there are none yet, end."""
        self.stopping_early = True
        if self.fleet is not None:
            self.fleet.drain()
        elif self.opening is not None:
            self.opening.cancel()

    def kill(self) -> None:
        """End the workers now; what they had not finished is played by the next launch."""
        if self.fleet is not None:
            self.fleet.kill()

    def report(self) -> dict[str, Any]:
        """The summary, as `--json` prints it: all of the run, earlier launches included."""
        outcomes = {state.name: list(state.claims.outcomes()) for state in self.environments}
        every = [outcome for found in outcomes.values() for outcome in found]
        return {
            **_summary(every),
            "total": sum(state.total for state in self.environments),
            "environments": {name: _summary(found) for name, found in outcomes.items()},
            "retries": sum(state.totals["retries"] for state in self.environments),
            "deaths": len(self.fleet.deaths) if self.fleet else 0,
            "run_dir": str(self.directory.path),
            "seconds": round(self.seconds, 3),
        }

    def failed(self) -> list[tuple[str, Outcome]]:
        """Rollouts of the run that ended with an error, with the names of their environments."""
        return [
            (state.name, outcome)
            for state in self.environments
            for outcome in state.claims.outcomes()
            if outcome.status == "failed"
        ]


Companion = Callable[[Launch], Coroutine[Any, Any, None]]
"""Runs beside a launch: shows it, and ends it when the user wants to stop."""


def launch(state: Launch, companion: Companion) -> None:
    """Play every rollout of every environment that is not done yet.

    Raises:
        RunHeld: another launch goes on in this directory.
        RolloutError, QueueError, AdapterError: it could not begin, or its workers died too often.
    """
    with state.directory.held(), json_log(state.directory.path / "log.jsonl", run=state.directory.run):
        try:
            anyio.run(_launch, state, companion)
        except BaseExceptionGroup as group:
            raise first_failure(group, (RolloutError, QueueError, AdapterError)) from None
        finally:
            state.seconds = time.monotonic() - state.began
            log.info("launch ended", **state.report())


async def _launch(state: Launch, companion: Companion) -> None:
    async with anyio.create_task_group() as outer:
        outer.start_soon(companion, state)
        async with AsyncExitStack() as stack:
            export = await stack.enter_async_context(_exporting(state))
            state.directory.ended.unlink(missing_ok=True)
            engines = stack.enter_context(ExitStack())
            with anyio.CancelScope() as state.opening:
                for environment in state.environments:
                    await _open(environment, state, stack, engines, export)
            if not state.stopping_early:
                await _run(state, export)
        outer.cancel_scope.cancel()


async def _run(state: Launch, export: Export) -> None:
    posts = [post for environment in state.environments for post in environment.posts]
    fleet = state.fleet = Fleet(posts, lambda name: _orders(state, name), state.place)
    export.unready = lambda: _unready(state)
    async with anyio.create_task_group() as running:
        running.start_soon(_feed_all, state, fleet)
        for environment in state.environments:
            running.start_soon(_follow_trainer, environment, state)
        await fleet.run()
        running.cancel_scope.cancel()


async def _open(
    environment: EnvironmentState, state: Launch, stack: AsyncExitStack, engines: ExitStack, export: Export
) -> None:
    """Make ready what the workers of an environment need."""
    config, directory = environment.member.config, state.directory
    _require_shared(config)
    ordered = [] if environment.fed_by_others else list(orders(config.new_environment, config.tasks))
    environment.total = len(ordered)
    environment.engines = await anyio.to_thread.run_sync(engine_urls, config, directory, engines)
    tasks = open_queue(directory.url(config.queue.tasks, environment.name), lease="record")
    await stack.enter_async_context(tasks)
    trajectories = open_queue(directory.url(config.queue.url, environment.name))
    await stack.enter_async_context(trajectories)
    export.watch(environment.name, "tasks", tasks)
    environment.backlog = export.watch(environment.name, "trajectories", trajectories)
    environment.control = open_queue(directory.url(config.queue.control, environment.name))
    await stack.enter_async_context(environment.control)
    environment.feeder = Feeder(ordered, tasks, environment.claims, config.policy)
    if not environment.fed_by_others:
        await (
            environment.feeder.clear(_patience(state, config)) if state.resumes else environment.feeder.require_empty()
        )
    budget = RestartBudget(config.worker.restarts)
    environment.posts = [
        Post(
            name=name,
            environment=environment.name,
            command=_worker_command(environment.member, directory, name),
            output=directory.path / "workers" / f"{name}.out",
            tasks=tasks,
            grace=config.worker.grace,
            budget=budget,
        )
        for name in (f"{environment.name}-{number}" for number in range(state.workers))
    ]


def _exporting(state: Launch) -> AbstractAsyncContextManager[Export]:
    """The metrics of a launch, served as the first of its configurations says."""
    registry, pulse = CollectorRegistry(), Pulse()
    ended = {environment.name: environment.ended for environment in state.environments}
    registry.register(LaunchCollector(lambda: _figures(state), ended))
    announcement = Announcement(state.directory.metrics, "launch", {"run": state.directory.run})
    config = state.environments[0].member.config.metrics
    return exporting(registry, announcement, config, pulse=pulse, patience=_STALLED)


def _figures(state: Launch) -> list[LaunchFigures]:
    deaths = Counter(death.environment for death in state.fleet.deaths) if state.fleet else Counter[str]()
    return [
        LaunchFigures(
            environment=environment.name,
            expected=None if environment.fed_by_others else environment.total,
            workers=len(environment.posts),
            ready=environment.ready,
            deaths=deaths[environment.name],
            tallies=[post.metrics for post in environment.posts],
        )
        for environment in state.environments
    ]


def _unready(state: Launch) -> str | None:
    if state.stopping_early:
        return "it drains"
    waiting = [environment.name for environment in state.environments if environment.posts and not environment.ready]
    return f"no worker is ready of {', '.join(waiting)}" if waiting else None


def _patience(state: Launch, config: Config) -> float:
    """Seconds for which orders of an earlier launch may be held: workers that it did not start have outlived it."""
    return _LEASE_LAPSES if state.workers else _LEASE_LAPSES + config.worker.rollout_timeout


def _require_shared(config: Config) -> None:
    for key, url in (("queue.url", config.queue.url), ("queue.tasks", config.queue.tasks)):
        if url.startswith("memory:"):
            raise ConfigurationError(
                f"{key} is {url}, and no other process can reach a memory queue; workers are processes. "
                "Use file:// or redis://, or `rollout run`, which is one process."
            )


async def _feed_all(state: Launch, fleet: Fleet) -> None:
    """Send every order, and let the workers go when the last one is settled."""
    async with anyio.create_task_group() as group:
        for environment in state.environments:
            if environment.fed_by_others:
                group.start_soon(anyio.sleep_forever)
            else:
                assert environment.feeder is not None
                slots = (state.workers or _ELSEWHERE) * environment.member.config.worker.concurrency
                group.start_soon(environment.feeder.feed, 2 * slots)
    state.directory.ended.touch()  # for workers that joined; ours are told
    fleet.drain()


async def _follow_trainer(environment: EnvironmentState, state: Launch) -> None:
    """Know how far the trainer is."""
    assert environment.control is not None
    follower = ProgressFollower(environment.control)
    while True:
        if await follower.follow(timeout=_LOOK):
            environment.progress = follower.latest
            if environment.feeder is not None:
                environment.feeder.progress = follower.latest
            if state.fleet is not None:
                state.fleet.tell()


def _orders(state: Launch, name: str) -> Orders:
    """What a worker is told."""
    environment = next(environment for environment in state.environments if environment.name == name)
    told = environment.progress
    version = environment.member.config.policy.version if told is None else str(told.version)
    pushed = told is not None and told.pushed
    return Orders(environment.engines, version, required=version if pushed else None)


def _worker_command(member: Member, directory: RunDirectory, name: str) -> tuple[str, ...]:
    overrides = [part for override in member.overrides for part in ("--set", override)]
    run = ("--run", str(directory.path), "--name", name)
    return (sys.executable, "-m", "rollout", "worker", str(member.file), *overrides, *run)


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    rewards = [outcome.reward for outcome in outcomes if outcome.reward is not None]
    return {
        "rollouts": len(outcomes),
        "status": dict(Counter(outcome.status for outcome in outcomes)),
        "reward_mean": math.fsum(rewards) / len(rewards) if rewards else None,
        "turns": sum(outcome.turns for outcome in outcomes),
        "images": sum(outcome.images for outcome in outcomes),
        "tokens": sum(outcome.tokens for outcome in outcomes),
    }
