"""`rollout launch`: starts workers for one or several environments, sends them orders, supervises and drains them.

The run's directory contains all that a later launch needs to continue the run: the configurations, and the claims,
which say which rollouts are done.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import structlog
from prometheus_client.registry import CollectorRegistry

from renderers_adapter.errors import AdapterError
from rollout.config.load import Config
from rollout.doctor.disk import PlannedRollouts, check_disk
from rollout.doctor.results import CheckStatus
from rollout.errors import RolloutError, primary_error
from rollout.launch.announcement import announced_launch
from rollout.launch.failure_limit import FailureLimit, TooManyFailures
from rollout.launch.feeder import Feeder
from rollout.launch.state import EnvironmentState, LaunchState, Notice
from rollout.launch.supervisor import RestartBudget, Supervisor, WorkerSlot
from rollout.launch.waiting import WaitWatcher
from rollout.log import log_to_json_file
from rollout.metrics.export import MetricsExport, export_metrics
from rollout.metrics.launch import EnvironmentStatus, LaunchCollector
from rollout.metrics.loop_monitor import LoopMonitor
from rollout.metrics.outcomes import OutcomeCollector
from rollout.metrics.server import ScrapeTargetFile
from rollout.records.launch_status import LaunchPhase
from rollout.records.progress import ProgressFollower
from rollout.rundir.directory import RunDirectory
from rollout.rundir.manifest import LaunchConfig
from rollout.rundir.outcomes import OutcomeTotals
from rollout.rundir.queues import RunQueues
from rollout.tasks.checks import TASKS_BEFORE_A_RUN, check_tasks
from rollout.tasks.orders import RolloutOrder, iter_orders
from rollout.tasks.sources import count_rows_used
from rollout.worker.link import WorkerInstructions
from rollout.worker.setup import find_or_start_engines
from transports import QueueClosed, QueueError

log = structlog.get_logger()

_PROGRESS_POLL_SECONDS = 1.0
_FAILURES_POLL_SECONDS = 0.5
_LEASE_EXPIRY_SECONDS = 60.0
_ASSUMED_EXTERNAL_WORKERS = 64
"""If the launch starts no workers itself, it keeps orders for this number of workers on the queue."""
_STALL_TIMEOUT = 120.0
"""Seconds for which the event loop may be blocked before the process counts as unhealthy."""


LaunchDisplay = Callable[[LaunchState], Coroutine[Any, Any, None]]
"""Shows a launch while it runs, and stops it when the user wants that."""


def run_launch(state: LaunchState, display: LaunchDisplay) -> None:
    """Play all rollouts of all environments, except those that are done already.

    Raises:
        RunAlreadyActive: another launch runs in this directory.
        TooManyFailures: more rollouts of an environment failed than its `run.max_failed` allows.
        RolloutError, QueueError, AdapterError: the launch could not start, or its workers died too many times.
    """
    with state.directory.lock(), log_to_json_file(state.directory.path / "log.jsonl", run=state.directory.run_id):
        state.launch_number = state.directory.next_launch_number()
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
            for environment in state.environments:
                task_group.start_soon(WaitWatcher(environment, state).run)
            with anyio.CancelScope() as state.startup_scope:
                for environment in state.environments:
                    await _prepare_environment(environment, state, stack, engine_stack, export)
                await _check_space(state)
            if not state.stopping_early:
                await _run_workers(state, export)
        task_group.cancel_scope.cancel()


async def _run_workers(state: LaunchState, export: MetricsExport) -> None:
    slots = [slot for environment in state.environments for slot in environment.worker_slots]
    supervisor = state.supervisor = Supervisor(slots, lambda name: _worker_instructions(state, name), state.place)
    export.not_ready_reason = lambda: _not_ready_reason(state)
    try:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(_feed_all, state, supervisor)
            for environment in state.environments:
                task_group.start_soon(_follow_trainer, environment, state)
            task_group.start_soon(_watch_failures, state)
            await supervisor.run()
            task_group.cancel_scope.cancel()
    finally:
        for slot in slots:  # a worker that was killed did not delete its file
            (state.directory.metrics_path / f"{slot.name}.json").unlink(missing_ok=True)
    if not state.stopping_early:
        await anyio.to_thread.run_sync(partial(state.outcomes.refresh, at_once=True))
        for environment in state.environments:
            _check_failures(environment, state)
    if state.too_many_failures is not None:
        raise state.too_many_failures


async def _prepare_environment(
    environment: EnvironmentState,
    state: LaunchState,
    stack: AsyncExitStack,
    engine_stack: ExitStack,
    export: MetricsExport,
) -> None:
    """List the orders of an environment, find or start its engines, open its queues, and make its worker slots."""
    config, directory = environment.launch_config.config, state.directory
    rollout_orders = (
        [] if environment.is_fed_externally else await anyio.to_thread.run_sync(_list_orders, environment, config)
    )
    environment.engine_urls = await anyio.to_thread.run_sync(find_or_start_engines, config, directory, engine_stack)
    queues = RunQueues(config, directory)
    tasks_queue = await stack.enter_async_context(queues.open_tasks())
    trajectories_queue = await stack.enter_async_context(queues.open_trajectories())
    environment.control_queue = await stack.enter_async_context(queues.open_control())
    for queue in (tasks_queue, trajectories_queue, environment.control_queue):
        await queue.stats()  # a queue that cannot be used ends the launch now, before workers start
    announcement = announced_launch(
        trajectories_queue,
        directory,
        environment.name,
        state.launch_number,
        end_phase=lambda: _end_phase(environment, state),
        report=lambda text: state.notices.append(Notice(f"{environment.name}: {text}")),
    )
    await stack.enter_async_context(announcement)
    environment.tasks_queue = tasks_queue
    environment.tasks_monitor = export.watch_queue(environment.name, "tasks", tasks_queue)
    environment.trajectories_monitor = export.watch_queue(environment.name, "trajectories", trajectories_queue)
    environment.feeder = Feeder(rollout_orders, tasks_queue, environment.claims, config.policy)
    if not environment.is_fed_externally:
        await (
            environment.feeder.remove_leftovers(_leftover_timeout(state, config))
            if state.is_resumed
            else environment.feeder.require_empty()
        )
    await anyio.to_thread.run_sync(partial(state.outcomes.refresh, at_once=True))
    environment.failure_limit = FailureLimit(
        environment.name, config.run.max_failed, dict(environment.outcome_totals.status_counts)
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


async def _check_space(state: LaunchState) -> None:
    """Check that the rollouts that are still to be played fit on the disk. Raises DiskTooSmall if they do not."""
    planned = [
        PlannedRollouts(
            environment.launch_config.config,
            None
            if environment.is_fed_externally
            else max(0, environment.total_rollouts - environment.outcome_totals.rollouts),
        )
        for environment in state.environments
    ]
    result = await anyio.to_thread.run_sync(check_disk, state.directory.path, planned)
    if result.status is CheckStatus.UNKNOWN:
        state.notices.append(Notice(result.message))


def _end_phase(environment: EnvironmentState, state: LaunchState) -> LaunchPhase:
    """Return what the launch says at its end about an environment."""
    if environment.feeder is not None and environment.feeder.all_finished:
        return LaunchPhase.DONE
    # Workers that the launch did not start play on until its orders are used up.
    return LaunchPhase.STOPPED if state.workers_per_environment else LaunchPhase.RUNNING


def _list_orders(environment: EnvironmentState, config: Config) -> list[RolloutOrder]:
    rollout_orders = list(iter_orders(config.new_environment, config.tasks))
    check_tasks(config.new_environment, config.tasks, rollout_orders, TASKS_BEFORE_A_RUN)
    environment.total_rollouts = len(rollout_orders)
    environment.rows_used = count_rows_used(config.tasks, len(rollout_orders) // config.tasks.group_size)
    return rollout_orders


def _export_metrics(state: LaunchState) -> AbstractAsyncContextManager[MetricsExport]:
    """Export the metrics of a launch with the settings of its first environment."""
    registry, loop_monitor = CollectorRegistry(), LoopMonitor()
    registry.register(LaunchCollector(lambda: _environment_statuses(state)))
    registry.register(OutcomeCollector(lambda: _refresh_totals(state)))
    target_file = ScrapeTargetFile(state.directory.metrics_path, "launch", {"run": state.directory.run_id})
    config = state.environments[0].launch_config.config.metrics
    return export_metrics(registry, target_file, config, loop_monitor=loop_monitor, stall_timeout=_STALL_TIMEOUT)


def _refresh_totals(state: LaunchState) -> dict[str, OutcomeTotals]:
    state.outcomes.refresh()
    return state.outcomes.by_environment


def _environment_statuses(state: LaunchState) -> list[EnvironmentStatus]:
    deaths = Counter(death.environment for death in state.supervisor.deaths) if state.supervisor else Counter[str]()
    return [
        EnvironmentStatus(
            environment=environment.name,
            expected_rollouts=None if environment.is_fed_externally else environment.total_rollouts,
            workers=len(environment.worker_slots),
            ready_workers=environment.ready_workers,
            deaths=deaths[environment.name],
        )
        for environment in state.environments
    ]


def _not_ready_reason(state: LaunchState) -> str | None:
    if state.stopping_early:
        return "the launch drains"
    without_workers = [
        environment.name
        for environment in state.environments
        if environment.worker_slots and not environment.ready_workers
    ]
    return f"no worker of {', '.join(without_workers)} is ready" if without_workers else None


def _leftover_timeout(state: LaunchState, config: Config) -> float:
    """Return the seconds to wait for workers that still hold orders of an earlier launch.

    If the launch starts no workers itself, the workers of the earlier launch still run. They may need the time of a
    whole rollout.
    """
    return (
        _LEASE_EXPIRY_SECONDS
        if state.workers_per_environment
        else _LEASE_EXPIRY_SECONDS + config.worker.rollout_timeout
    )


async def _feed_all(state: LaunchState, supervisor: Supervisor) -> None:
    """Send every order, and drain the workers when all orders are acked."""
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
    state.directory.ended_marker.touch()  # for workers that joined the run; our own workers get a signal
    supervisor.drain()


async def _watch_failures(state: LaunchState) -> None:
    while state.too_many_failures is None:
        await anyio.to_thread.run_sync(state.outcomes.refresh)
        for environment in state.environments:
            _check_failures(environment, state)
        await anyio.sleep(_FAILURES_POLL_SECONDS)


def _check_failures(environment: EnvironmentState, state: LaunchState) -> None:
    assert environment.failure_limit is not None
    try:
        environment.failure_limit.check(environment.outcome_totals.status_counts)
    except TooManyFailures as failure:
        log.error("too many rollouts failed", environment=environment.name, error=str(failure))
        state.stop_for_failures(failure)


async def _follow_trainer(environment: EnvironmentState, state: LaunchState) -> None:
    """Read the trainer's progress as it comes, and pass it on to the feeder and the workers.

    While the control queue does not answer, the launch continues with the last progress that it read.
    """
    assert environment.control_queue is not None
    follower = ProgressFollower(environment.control_queue)
    failed_since: float | None = None
    while True:
        try:
            has_news = await follower.poll(timeout=_PROGRESS_POLL_SECONDS)
        except QueueClosed:
            return
        except QueueError as error:
            if failed_since is None:
                failed_since = time.monotonic()
                text = f"the trainer's progress (queue.control) cannot be read; the launch tries each second: {error}"
                log.warning("the control queue does not answer", environment=environment.name, error=str(error))
                state.notices.append(Notice(f"{environment.name}: {text}"))
            await anyio.sleep(_PROGRESS_POLL_SECONDS)
            continue
        if failed_since is not None:
            text = f"the trainer's progress can be read again, after {time.monotonic() - failed_since:.0f} s"
            log.info("the control queue answers again", environment=environment.name)
            state.notices.append(Notice(f"{environment.name}: {text}"))
            failed_since = None
        if has_news:
            environment.trainer_progress = follower.latest
            if environment.feeder is not None:
                environment.feeder.trainer_progress = follower.latest
            if state.supervisor is not None:
                state.supervisor.send_instructions()


def _worker_instructions(state: LaunchState, environment_name: str) -> WorkerInstructions:
    """Return the instructions for the workers of the environment with this name."""
    environment = next(environment for environment in state.environments if environment.name == environment_name)
    progress = environment.trainer_progress
    version = environment.launch_config.config.policy.version if progress is None else str(progress.version)
    weights_pushed = progress is not None and progress.pushed
    return WorkerInstructions(
        environment.engine_urls,
        version,
        required_version=version if weights_pushed else None,
        overrides=environment.launch_config.overrides,
    )


def _worker_command(launch_config: LaunchConfig, directory: RunDirectory, name: str) -> tuple[str, ...]:
    # The worker gets the overrides over its link, because every user of this machine can read command lines.
    run_options = ("--run", str(directory.path), "--name", name)
    # With -P, Python does not import modules from the current directory, as with the command `rollout`.
    return (sys.executable, "-P", "-m", "rollout", "worker", str(launch_config.file), *run_options)
