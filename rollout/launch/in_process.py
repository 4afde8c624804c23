"""`rollout run`: an engine, a worker and a reader in one process, from a configuration to a summary."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio
import structlog

from renderers_adapter.errors import AdapterError
from rollout.config.environment_class import check_machine, require_usable
from rollout.config.load import Config
from rollout.errors import ConfigurationError, RolloutError, primary_error
from rollout.launch.failure_limit import FailureLimit
from rollout.log import log_to_json_file
from rollout.metrics.export import MetricsExport, export_metrics
from rollout.metrics.outcomes import OutcomeCollector
from rollout.metrics.server import ScrapeTargetFile
from rollout.metrics.worker import WorkerMetrics
from rollout.rundir.claims import Claims
from rollout.rundir.directory import RUN_CONFIG_NAME, RunDirectory, create_run_directory
from rollout.rundir.outcomes import OutcomeTotals
from rollout.rundir.queues import RunQueues
from rollout.session.policy import PolicyClient
from rollout.tasks.checks import TASKS_BEFORE_A_RUN, check_tasks
from rollout.tasks.orders import RolloutOrder, encode_order, iter_orders
from rollout.tasks.sources import RowsUsed, count_rows_used
from rollout.trainer import GroupAssembler, Trajectory, TrajectoryReader, Violation, check, samples
from rollout.trainer.metrics import ReaderCollector
from rollout.worker.containment import LoopWatchdog, refuse_exits
from rollout.worker.leaving import run_leaving_behind
from rollout.worker.resources import open_shared_resources
from rollout.worker.setup import build_run_metadata, find_or_start_engines, open_policy
from rollout.worker.worker import Worker
from transports import Queue, QueueError, QueueURLError, UnknownTransport, open_queue

log = structlog.get_logger()

_DRAIN_TIMEOUT = 60.0
_COMMIT_EVERY = 64
_RECEIVE_TIMEOUT = 0.1
_STALL_TIMEOUT = 120.0
"""Seconds for which the event loop may be blocked before the process counts as unhealthy."""


class QueueInUse(RolloutError):
    """The queue for the trajectories is not empty."""


class TrajectoriesLost(RolloutError):
    """Finished rollouts did not reach the reader."""


@dataclass(slots=True)
class TrainerCounters:
    """Counts the trajectories that the reader received.

    Attributes:
        trajectories: the number of trajectories.
        groups: the number of complete groups.
        samples: the number of training samples of these trajectories.
        tokens: the number of tokens of these samples.
        violations: the errors that `check` found in the trajectories.
        group_assembler: collects the trajectories of each group.
    """

    trajectories: int = 0
    groups: int = 0
    samples: int = 0
    tokens: int = 0
    violations: list[Violation] = field(default_factory=list)
    group_assembler: GroupAssembler[Trajectory] = field(default_factory=GroupAssembler)

    def add(self, trajectory: Trajectory) -> None:
        """Count a trajectory, check it, and make its training samples, as a trainer would."""
        self.trajectories += 1
        self.violations += check(trajectory)
        self.groups += self.group_assembler.add(trajectory) is not None
        if trajectory.trainable:
            for sample in samples(trajectory):
                self.samples += 1
                self.tokens += len(sample.token_ids)


@dataclass(slots=True)
class RunState:
    """The state of a run, for a display.

    Attributes:
        directory: the run's directory.
        total_rollouts: the number of rollouts that the run plays.
        rows_used: how many rows of `tasks.source` the run plays; None if the tasks come from no such source.
        engine_description: a text about the engines; empty until they are known.
        worker: the worker that plays the rollouts; None until the engines are checked.
        trainer_counters: counts the trajectories that the reader received.
        notices: lines that no display has shown yet, for example that the run waits for an engine.
        interrupted: whether the user stopped the run.
        started_at: the time when the run started, by the monotonic clock.
        elapsed_seconds: the seconds that the run took; 0 while it runs.
        loop_watchdog: interrupts code that blocks the event loop; None before the event loop runs.
    """

    directory: RunDirectory
    total_rollouts: int
    rows_used: RowsUsed | None = None
    engine_description: str = ""
    worker: Worker | None = None
    trainer_counters: TrainerCounters = field(default_factory=TrainerCounters)
    notices: deque[str] = field(default_factory=deque)
    interrupted: bool = False
    started_at: float = field(default_factory=time.monotonic)
    elapsed_seconds: float = 0.0
    loop_watchdog: LoopWatchdog | None = None

    @property
    def totals(self) -> OutcomeTotals:
        """The totals of the rollouts that have ended."""
        return self.worker.totals if self.worker is not None else OutcomeTotals()

    def report(self) -> dict[str, Any]:
        """Return the summary, as `--json` prints it."""
        return {
            **self.totals.report(),
            "rows": asdict(self.rows_used) if self.rows_used is not None else None,
            "trainer": {
                "trajectories": self.trainer_counters.trajectories,
                "samples": self.trainer_counters.samples,
                "tokens": self.trainer_counters.tokens,
                "violations": len(self.trainer_counters.violations),
            },
            "run_dir": str(self.directory.path),
            "seconds": round(self.elapsed_seconds, 3),
        }


def prepare_run(config: Config) -> RunState:
    """Choose the id of a new run, create its directory, and return its state.

    Raises:
        EnvironmentUnusable: no environment can be made.
        ConfigurationError: this machine does not have what the environment needs.
        RolloutError: the directory cannot be created.
    """
    require_usable(config.new_environment, config.environment_class_path)
    check_machine(config.environment_class, config.environment_settings)
    directory = create_run_directory(config.run.directory, config.run.name)
    directory.save_config(config, RUN_CONFIG_NAME)
    return RunState(directory, config.tasks.count * config.tasks.group_size)


RunDisplay = Callable[["RunState", anyio.Event], Coroutine[Any, Any, None]]
"""Shows the state while the run lasts, and sets the event when the user wants to stop the run."""


def run_in_process(config: Config, state: RunState, display: RunDisplay) -> None:
    """Play every rollout of the configuration. Return then, even if tasks or threads of environments still run.

    If a setting ends the run before its first rollout, the directory of the run is removed.

    Raises:
        RolloutError, QueueError, AdapterError: the run could not start, or its infrastructure kept failing.
    """
    try:
        _run_locked(config, state, display)
    except (ConfigurationError, AdapterError, QueueURLError, UnknownTransport):
        state.directory.remove_if_unplayed()
        raise


def _run_locked(config: Config, state: RunState, display: RunDisplay) -> None:
    with state.directory.lock(), log_to_json_file(state.directory.path / "log.jsonl", run=state.directory.run_id):
        try:
            run_leaving_behind(_run_in_process(config, state, display))
        except BaseExceptionGroup as group:
            raise primary_error(group, (RolloutError, QueueError, AdapterError)) from None
        finally:
            state.elapsed_seconds = time.monotonic() - state.started_at
            log.info("run ended", **state.report())


async def _run_in_process(config: Config, state: RunState, display: RunDisplay) -> None:
    refuse_exits(asyncio.get_running_loop())
    if threading.current_thread() is not threading.main_thread():  # only code in the main thread can be interrupted
        await _play(config, state, display)
        return
    with LoopWatchdog(config.worker.block_timeout) as state.loop_watchdog:
        await _play(config, state, display)


async def _play(config: Config, state: RunState, display: RunDisplay) -> None:
    stop_event = anyio.Event()
    rollout_orders = list(iter_orders(config.new_environment, config.tasks))
    check_tasks(config.new_environment, config.tasks, rollout_orders, TASKS_BEFORE_A_RUN)
    state.total_rollouts = len(rollout_orders)
    state.rows_used = count_rows_used(config.tasks, len(rollout_orders) // config.tasks.group_size)
    failure: BaseException | None = None
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(display, state, stop_event)
        async with AsyncExitStack() as stack:
            metrics = WorkerMetrics(config.run.name)
            metrics.registry.register(OutcomeCollector(lambda: {config.run.name: state.totals}))
            export = await stack.enter_async_context(_export_metrics(config, state, metrics))
            queues = RunQueues(config, state.directory)
            tasks_url = f"memory://{state.directory.run_id}-tasks"  # no other process plays this run
            tasks_queue = await stack.enter_async_context(open_queue(tasks_url, lease="record"))
            trajectories_queue = await stack.enter_async_context(queues.open_trajectories())
            await _refuse_leftovers(trajectories_queue)
            reader = await stack.enter_async_context(TrajectoryReader(queues.open_trajectories()))
            metrics.registry.register(
                ReaderCollector(reader, export.watch_queue(config.run.name, "trajectories", trajectories_queue))
            )
            play_scope = anyio.CancelScope()
            task_group.start_soon(_cancel_when_set, stop_event, play_scope)
            try:
                with play_scope:
                    async with (
                        _open_run_policy(config, state, metrics) as policy,
                        open_shared_resources(config.environment_class, config.environment_settings) as resources,
                    ):
                        claims = Claims(state.directory.claims_path(config.run.name))
                        worker = state.worker = Worker(
                            config,
                            policy,
                            build_run_metadata(config, state.directory.run_id),
                            claims,
                            tasks_queue,
                            trajectories_queue,
                            resources,
                        )
                        metrics.export_state(lambda: worker.in_flight, policy.engine, policy.version)
                        export.not_ready_reason = lambda: None
                        async with anyio.create_task_group() as worker_group:
                            worker_group.start_soon(_feed, rollout_orders, tasks_queue)
                            worker_group.start_soon(worker.run)
                            failure_limit = FailureLimit(config.run.name, config.run.max_failed)
                            await _consume(reader, state, failure_limit)
                            worker_group.cancel_scope.cancel()
            except (BaseExceptionGroup, RolloutError, QueueError, AdapterError) as error:
                failure = primary_error(error, (RolloutError, QueueError, AdapterError))
            state.interrupted = stop_event.is_set()
            with anyio.move_on_after(_DRAIN_TIMEOUT):
                await _abandon_and_read_rest(reader, state)
        task_group.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _refuse_leftovers(trajectories_queue: Queue) -> None:
    """Refuse a queue with records of another run, because this run would count and ack them."""
    backlog = (await trajectories_queue.stats()).backlog_records
    if backlog:
        raise QueueInUse(
            f"{trajectories_queue.url} holds {backlog} records of another run. Let the trainer of that run read them, "
            "empty the queue with `rollout queue drain`, or name another queue in queue.url."
        )


async def _feed(rollout_orders: list[RolloutOrder], tasks_queue: Queue) -> None:
    for order in rollout_orders:
        await tasks_queue.admit()
        await tasks_queue.put(encode_order(order), key=order.rollout_id, tag=order.rollout_id)


async def _cancel_when_set(stop_event: anyio.Event, scope: anyio.CancelScope) -> None:
    await stop_event.wait()
    scope.cancel()


async def _consume(reader: TrajectoryReader, state: RunState, failure_limit: FailureLimit) -> None:
    last_arrival = time.monotonic()
    uncommitted = 0
    while state.trainer_counters.trajectories < state.total_rollouts:
        failure_limit.check(state.totals.status_counts)
        if (trajectory := await reader.receive(timeout=_RECEIVE_TIMEOUT)) is not None:
            last_arrival = time.monotonic()
            state.trainer_counters.add(trajectory)
            uncommitted += 1
            if uncommitted == _COMMIT_EVERY:
                await _commit(reader)
                uncommitted = 0
            continue
        if uncommitted:
            await _commit(reader)  # the queue may be full of records that are not committed yet
            uncommitted = 0
        if state.totals.rollouts < state.total_rollouts:
            last_arrival = time.monotonic()
        elif time.monotonic() - last_arrival > _DRAIN_TIMEOUT:
            raise TrajectoriesLost(
                f"{state.totals.rollouts} rollouts have finished, but the reader got only "
                f"{state.trainer_counters.trajectories} of them from the queue, and none in the last "
                f"{_DRAIN_TIMEOUT:g} s. Stop every other reader of this queue."
            )
    failure_limit.check(state.totals.status_counts)


async def _abandon_and_read_rest(reader: TrajectoryReader, state: RunState) -> None:
    """Abandon the rollouts that were in flight, and read all trajectories that the reader has not received yet."""
    if state.worker is not None:
        await state.worker.abandon_interrupted()
    while state.trainer_counters.trajectories < state.totals.rollouts:
        if (trajectory := await reader.receive(timeout=_RECEIVE_TIMEOUT)) is not None:
            state.trainer_counters.add(trajectory)
    await _commit(reader)


async def _commit(reader: TrajectoryReader) -> None:
    reader.state_dict()  # a trainer would save this state with its weights
    await reader.commit()


def _export_metrics(
    config: Config, state: RunState, metrics: WorkerMetrics
) -> AbstractAsyncContextManager[MetricsExport]:
    target_file = ScrapeTargetFile(state.directory.metrics_path, "run", {"run": state.directory.run_id})
    return export_metrics(
        metrics.registry, target_file, config.metrics, loop_monitor=metrics.loop_monitor, stall_timeout=_STALL_TIMEOUT
    )


@asynccontextmanager
async def _open_run_policy(config: Config, state: RunState, metrics: WorkerMetrics) -> AsyncIterator[PolicyClient]:
    with ExitStack() as engine_stack:

        def get_engine_urls() -> tuple[str, ...]:
            urls = find_or_start_engines(config, state.directory, engine_stack)
            joined_urls = ", ".join(urls)
            state.engine_description = (
                joined_urls if config.engine.urls else f"embedded (scripted, no neural network), {joined_urls}"
            )
            return urls

        def report_wait(text: str) -> None:
            log.warning("the run waits for its engines", text=text)
            state.notices.append(text)

        async with open_policy(config, state.directory, get_engine_urls, metrics, report_wait) as policy:
            yield policy
