"""`rollout launch`: worker processes for one or several environments, which get orders and are supervised and drained.

The run's directory contains everything that is needed to continue a launch: the configurations that it started with,
and the claims, which say what is done.
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
from rollout.environments.base import QUEUE_SOURCE
from rollout.errors import ConfigurationError, RolloutError, primary_error
from rollout.launch.feeder import Feeder
from rollout.launch.places import Place
from rollout.launch.supervisor import RestartBudget, Supervisor, WorkerSlot
from rollout.log import log_to_json_file
from rollout.metrics.export import MetricsExport, export_metrics
from rollout.metrics.launch import EnvironmentStatus, LaunchCollector
from rollout.metrics.loop_monitor import LoopMonitor
from rollout.metrics.queues import QueueMonitor
from rollout.metrics.server import ScrapeTargetFile
from rollout.records.progress import ProgressFollower, TrainerProgress
from rollout.rundir.claims import Claims, Outcome
from rollout.rundir.directory import RunDirectory
from rollout.rundir.manifest import LaunchConfig
from rollout.rundir.outcomes import OutcomeTotals
from rollout.tasks.orders import iter_orders
from rollout.worker.link import WorkerInstructions
from rollout.worker.setup import find_or_start_engines
from transports import Queue, QueueError, open_queue

log = structlog.get_logger()

_PROGRESS_POLL_SECONDS = 1.0
_LEASE_EXPIRY_SECONDS = 60.0
_ASSUMED_EXTERNAL_WORKERS = 64
"""For how many workers orders are kept on the queue, if somebody else starts all workers."""
_STALL_TIMEOUT = 120.0
"""Seconds without a turn of the supervisor's event loop after which the process is unhealthy."""


@dataclass(slots=True)
class EnvironmentState:
    """One environment of a launch, while the launch runs.

    Attributes:
        launch_config: the launch configuration of the environment.
        claims: the claims of the environment in this run.
        total_rollouts: how many rollouts the configuration asks for; 0 if others put the orders.
        feeder: sends the orders; None until the environment is prepared.
        engine_urls: the roots of the engines.
        worker_slots: the slots of the environment's workers.
        outcome_totals: how the rollouts of the run ended, as its claims say.
        control_queue: the queue with the trainer's progress; None until the environment is prepared.
        trainer_progress: the trainer's last progress; None until the first one has come.
        trajectories_monitor: the state of the trajectories queue; None until the environment is prepared.
    """

    launch_config: LaunchConfig
    claims: Claims
    total_rollouts: int = 0
    feeder: Feeder | None = None
    engine_urls: tuple[str, ...] = ()
    worker_slots: list[WorkerSlot] = field(default_factory=list)
    outcome_totals: OutcomeTotals = field(init=False)
    control_queue: Queue | None = None
    trainer_progress: TrainerProgress | None = None
    trajectories_monitor: QueueMonitor | None = None

    def __post_init__(self) -> None:
        self.outcome_totals = OutcomeTotals(self.claims)

    @property
    def backlog_bytes(self) -> int:
        return self.trajectories_monitor.latest_stats.backlog_bytes if self.trajectories_monitor is not None else 0

    @property
    def name(self) -> str:
        return self.launch_config.config.run.name

    @property
    def is_fed_externally(self) -> bool:
        """Whether somebody else puts its orders; it then runs until it is stopped."""
        return self.launch_config.config.tasks.source == QUEUE_SOURCE

    @property
    def worker_totals(self) -> Counter[str]:
        """What its workers did in this launch, by the names of `Heartbeat`."""
        totals: Counter[str] = Counter()
        for slot in self.worker_slots:
            totals.update(slot.totals)
        return totals

    @property
    def in_flight(self) -> int:
        return sum(slot.heartbeat.in_flight for slot in self.worker_slots)

    @property
    def ready_workers(self) -> int:
        return sum(slot.heartbeat.ready for slot in self.worker_slots)


class LaunchState:
    """A launch while it runs; who shows its progress reads it, and may end it by `stop_early` and `kill`.

    `is_resumed` says that orders on the tasks queue are those of an earlier launch of this run.
    """

    def __init__(
        self,
        directory: RunDirectory,
        launch_configs: Sequence[LaunchConfig],
        workers_per_environment: int,
        place: Place,
        *,
        is_resumed: bool,
    ) -> None:
        self.is_resumed = is_resumed
        self.place = place
        self.directory = directory
        self.environments = [
            EnvironmentState(launch_config, Claims(directory.claims_path(launch_config.config.run.name)))
            for launch_config in launch_configs
        ]
        self.workers_per_environment = workers_per_environment
        self.supervisor: Supervisor | None = None
        self.startup_scope: anyio.CancelScope | None = None
        self.stopping_early = False
        self.started_at = time.monotonic()
        self.elapsed_seconds = 0.0

    def stop_early(self) -> None:
        """Let the workers finish their rollouts and start no others; if there are no workers yet, end."""
        self.stopping_early = True
        if self.supervisor is not None:
            self.supervisor.drain()
        elif self.startup_scope is not None:
            self.startup_scope.cancel()

    def kill(self) -> None:
        """End the workers now; the next launch plays what they did not finish."""
        if self.supervisor is not None:
            self.supervisor.kill()

    def report(self) -> dict[str, Any]:
        """The summary, as `--json` prints it: all of the run, earlier launches included."""
        outcomes_by_environment = {
            environment.name: list(environment.claims.outcomes()) for environment in self.environments
        }
        all_outcomes = [
            outcome for environment_outcomes in outcomes_by_environment.values() for outcome in environment_outcomes
        ]
        return {
            **_summarize(all_outcomes),
            "total": sum(state.total_rollouts for state in self.environments),
            "environments": {name: _summarize(found) for name, found in outcomes_by_environment.items()},
            "retries": sum(state.worker_totals["retries"] for state in self.environments),
            "deaths": len(self.supervisor.deaths) if self.supervisor else 0,
            "run_dir": str(self.directory.path),
            "seconds": round(self.elapsed_seconds, 3),
        }

    def failed_rollouts(self) -> list[tuple[str, Outcome]]:
        """Return the rollouts of the run that failed, with the names of their environments."""
        return [
            (environment.name, outcome)
            for environment in self.environments
            for outcome in environment.claims.outcomes()
            if outcome.status == "failed"
        ]


LaunchDisplay = Callable[[LaunchState], Coroutine[Any, Any, None]]
"""Runs at the same time as a launch: shows it, and ends it when the user wants to stop."""


def run_launch(state: LaunchState, display: LaunchDisplay) -> None:
    """Play every rollout of every environment that is not done yet.

    Raises:
        RunAlreadyActive: another launch runs in this directory.
        RolloutError, QueueError, AdapterError: the launch could not start, or its workers died too often.
    """
    with state.directory.lock(), log_to_json_file(state.directory.path / "log.jsonl", run=state.directory.run_id):
        try:
            anyio.run(_run_launch, state, display)
        except BaseExceptionGroup as group:
            raise primary_error(group, (RolloutError, QueueError, AdapterError)) from None
        finally:
            state.elapsed_seconds = time.monotonic() - state.started_at
            log.info("launch ended", **state.report())


async def _run_launch(state: LaunchState, display: LaunchDisplay) -> None:
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(display, state)
        async with AsyncExitStack() as stack:
            export = await stack.enter_async_context(_export_metrics(state))
            state.directory.ended_marker.unlink(missing_ok=True)
            engine_stack = stack.enter_context(ExitStack())
            with anyio.CancelScope() as state.startup_scope:
                for environment in state.environments:
                    await _prepare_environment(environment, state, stack, engine_stack, export)
            if not state.stopping_early:
                await _run_workers(state, export)
        task_group.cancel_scope.cancel()


async def _run_workers(state: LaunchState, export: MetricsExport) -> None:
    slots = [slot for environment in state.environments for slot in environment.worker_slots]
    supervisor = state.supervisor = Supervisor(slots, lambda name: _worker_instructions(state, name), state.place)
    export.not_ready_reason = lambda: _not_ready_reason(state)
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(_feed_all, state, supervisor)
        for environment in state.environments:
            task_group.start_soon(_follow_trainer, environment, state)
        await supervisor.run()
        task_group.cancel_scope.cancel()


async def _prepare_environment(
    environment: EnvironmentState,
    state: LaunchState,
    stack: AsyncExitStack,
    engine_stack: ExitStack,
    export: MetricsExport,
) -> None:
    """Prepare what the workers of an environment need."""
    config, directory = environment.launch_config.config, state.directory
    _refuse_memory_queues(config)
    rollout_orders = [] if environment.is_fed_externally else list(iter_orders(config.new_environment, config.tasks))
    environment.total_rollouts = len(rollout_orders)
    environment.engine_urls = await anyio.to_thread.run_sync(find_or_start_engines, config, directory, engine_stack)
    tasks_queue = open_queue(directory.queue_url(config.queue.tasks, environment.name), lease="record")
    await stack.enter_async_context(tasks_queue)
    trajectories_queue = open_queue(directory.queue_url(config.queue.url, environment.name))
    await stack.enter_async_context(trajectories_queue)
    export.watch_queue(environment.name, "tasks", tasks_queue)
    environment.trajectories_monitor = export.watch_queue(environment.name, "trajectories", trajectories_queue)
    environment.control_queue = open_queue(directory.queue_url(config.queue.control, environment.name))
    await stack.enter_async_context(environment.control_queue)
    environment.feeder = Feeder(rollout_orders, tasks_queue, environment.claims, config.policy)
    if not environment.is_fed_externally:
        await (
            environment.feeder.remove_leftovers(_leftover_timeout(state, config))
            if state.is_resumed
            else environment.feeder.require_empty()
        )
    restart_budget = RestartBudget(config.worker.restarts)
    environment.worker_slots = [
        WorkerSlot(
            name=name,
            environment=environment.name,
            command=_worker_command(environment.launch_config, directory, name),
            output_path=directory.path / "workers" / f"{name}.out",
            tasks_queue=tasks_queue,
            grace_seconds=config.worker.grace,
            restart_budget=restart_budget,
        )
        for name in (f"{environment.name}-{number}" for number in range(state.workers_per_environment))
    ]


def _export_metrics(state: LaunchState) -> AbstractAsyncContextManager[MetricsExport]:
    """The metrics of a launch, served as the first of its configurations says."""
    registry, loop_monitor = CollectorRegistry(), LoopMonitor()
    outcome_totals = {environment.name: environment.outcome_totals for environment in state.environments}
    registry.register(LaunchCollector(lambda: _environment_statuses(state), outcome_totals))
    target_file = ScrapeTargetFile(state.directory.metrics_path, "launch", {"run": state.directory.run_id})
    config = state.environments[0].launch_config.config.metrics
    return export_metrics(registry, target_file, config, loop_monitor=loop_monitor, stall_timeout=_STALL_TIMEOUT)


def _environment_statuses(state: LaunchState) -> list[EnvironmentStatus]:
    deaths = Counter(death.environment for death in state.supervisor.deaths) if state.supervisor else Counter[str]()
    return [
        EnvironmentStatus(
            environment=environment.name,
            expected_rollouts=None if environment.is_fed_externally else environment.total_rollouts,
            workers=len(environment.worker_slots),
            ready_workers=environment.ready_workers,
            deaths=deaths[environment.name],
            metric_totals=[slot.metric_totals for slot in environment.worker_slots],
        )
        for environment in state.environments
    ]


def _not_ready_reason(state: LaunchState) -> str | None:
    if state.stopping_early:
        return "it drains"
    without_workers = [
        environment.name
        for environment in state.environments
        if environment.worker_slots and not environment.ready_workers
    ]
    return f"no worker is ready of {', '.join(without_workers)}" if without_workers else None


def _leftover_timeout(state: LaunchState, config: Config) -> float:
    """Return for how many seconds living workers may still hold orders of an earlier launch.

    Workers that the earlier launch did not start still run, and may finish a whole rollout first.
    """
    return (
        _LEASE_EXPIRY_SECONDS
        if state.workers_per_environment
        else _LEASE_EXPIRY_SECONDS + config.worker.rollout_timeout
    )


def _refuse_memory_queues(config: Config) -> None:
    for key, url in (("queue.url", config.queue.url), ("queue.tasks", config.queue.tasks)):
        if url.startswith("memory:"):
            raise ConfigurationError(
                f"{key} is {url}, and no other process can reach a memory queue; workers are processes. "
                "Use file:// or redis://, or `rollout run`, which is one process."
            )


async def _feed_all(state: LaunchState, supervisor: Supervisor) -> None:
    """Send every order, and drain the workers when the last one is acked."""
    async with anyio.create_task_group() as task_group:
        for environment in state.environments:
            if environment.is_fed_externally:
                task_group.start_soon(anyio.sleep_forever)
            else:
                assert environment.feeder is not None
                rollout_slots = (
                    state.workers_per_environment or _ASSUMED_EXTERNAL_WORKERS
                ) * environment.launch_config.config.worker.concurrency
                task_group.start_soon(environment.feeder.feed, 2 * rollout_slots)
    state.directory.ended_marker.touch()  # for workers that joined the run; ours get a signal
    supervisor.drain()


async def _follow_trainer(environment: EnvironmentState, state: LaunchState) -> None:
    """Follow the trainer's progress, and pass it on to the feeder and the workers."""
    assert environment.control_queue is not None
    follower = ProgressFollower(environment.control_queue)
    while True:
        if await follower.poll(timeout=_PROGRESS_POLL_SECONDS):
            environment.trainer_progress = follower.latest
            if environment.feeder is not None:
                environment.feeder.trainer_progress = follower.latest
            if state.supervisor is not None:
                state.supervisor.send_instructions()


def _worker_instructions(state: LaunchState, environment_name: str) -> WorkerInstructions:
    """Return the instructions for the workers of an environment."""
    environment = next(environment for environment in state.environments if environment.name == environment_name)
    progress = environment.trainer_progress
    version = environment.launch_config.config.policy.version if progress is None else str(progress.version)
    weights_pushed = progress is not None and progress.pushed
    return WorkerInstructions(environment.engine_urls, version, required_version=version if weights_pushed else None)


def _worker_command(launch_config: LaunchConfig, directory: RunDirectory, name: str) -> tuple[str, ...]:
    override_options = [argument for override in launch_config.overrides for argument in ("--set", override)]
    run_options = ("--run", str(directory.path), "--name", name)
    return (sys.executable, "-m", "rollout", "worker", str(launch_config.file), *override_options, *run_options)


def _summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    rewards = [outcome.reward for outcome in outcomes if outcome.reward is not None]
    return {
        "rollouts": len(outcomes),
        "status": dict(Counter(outcome.status for outcome in outcomes)),
        "reward_mean": math.fsum(rewards) / len(rewards) if rewards else None,
        "turns": sum(outcome.turns for outcome in outcomes),
        "images": sum(outcome.images for outcome in outcomes),
        "tokens": sum(outcome.tokens for outcome in outcomes),
    }
