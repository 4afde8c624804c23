"""The process of one worker: it starts, plays the orders of the tasks queue, and drains after a signal."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskStatus

from renderers_adapter.errors import AdapterError
from rollout.config.environment_class import check_machine
from rollout.config.load import Config
from rollout.errors import ConfigurationError, RolloutError, primary_error
from rollout.log import log_to_json_file
from rollout.metrics.export import MetricsExport, export_metrics
from rollout.metrics.outcomes import OutcomeCollector
from rollout.metrics.server import MetricsPortTaken, ScrapeTargetFile
from rollout.metrics.worker import WorkerMetrics
from rollout.rundir.assets import hold_run_lock
from rollout.rundir.claims import Claims
from rollout.rundir.directory import RunDirectory
from rollout.rundir.manifest import can_resume
from rollout.rundir.outcomes import OutcomeTotals
from rollout.rundir.queues import RunQueues
from rollout.worker.containment import LimitedOutput, LoopWatchdog, refuse_exits, refuse_forks
from rollout.worker.link import (
    Heartbeat,
    SupervisorLink,
    WorkerFailure,
    WorkerInstructions,
    kill_own_process_group,
)
from rollout.worker.resources import open_shared_resources
from rollout.worker.setup import build_run_metadata, find_or_start_engines, open_policy
from rollout.worker.worker import Worker
from transports import Queue, QueueError

log = structlog.get_logger()

_BASE_THREADS = 32
_MAX_ENVIRONMENT_THREADS = 96
"""The limit of threads for environments. Thousands of threads would take much of a worker's memory."""
_EXIT_TIMEOUT = 5.0
"""Seconds within which the process must end after the worker has ended."""
_MAX_FAILED_INTERRUPTS = 2
"""The number of times that the watchdog may fail to interrupt blocking code before the worker counts as unhealthy."""
_STARTUP_SECONDS = 60.0
_RUN_END_CHECK_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class WorkerRunner:
    """Runs a worker in this process.

    Attributes:
        config: the configuration of the worker's environment.
        directory: the run's directory.
        name: the worker's name; no two living workers of a run have the same name.
        supervisor_link: the link to the worker's supervisor; None if it has no supervisor.
    """

    config: Config
    directory: RunDirectory
    name: str
    supervisor_link: SupervisorLink | None = None

    def run(self) -> None:
        """Play rollouts until a signal comes.

        The first signal drains the worker for at most `worker.grace` seconds. A second signal ends the worker at once.

        Raises:
            RolloutError, QueueError, AdapterError: the worker could not start, or its infrastructure kept failing.
        """
        self.directory.create()
        refuse_forks()
        log_path = self.directory.path / "workers" / f"{self.name}.jsonl"
        log_file = log_to_json_file(log_path, run=self.directory.run_id, worker=self.name)
        with hold_run_lock(self.directory.path), log_file, _limit_output():
            failure = anyio.run(self._run)
        if failure is not None:
            raise failure

    async def _run(self) -> BaseException | None:
        """Play rollouts; return the error that ended the worker, or None."""
        failure: BaseException | None = None
        try:
            await self._set_up_and_play()
        except Exception as error:
            failure = primary_error(error, (RolloutError, QueueError, AdapterError))
            log.error("worker ends", exc_info=failure)
        if self.supervisor_link is not None:
            self.supervisor_link.close(
                WorkerFailure(str(failure), is_configuration=isinstance(failure, ConfigurationError))
                if failure is not None
                else None
            )
        _force_exit_after(_EXIT_TIMEOUT, 0 if failure is None else 1)
        return failure

    async def _set_up_and_play(self) -> None:
        config, environment = self.config, self.config.run.name
        _resize_thread_pools(config.worker.concurrency)
        refuse_exits(asyncio.get_running_loop())
        metrics = WorkerMetrics(environment)
        async with AsyncExitStack() as stack:
            export = await self._export_metrics(metrics, stack)
            with LoopWatchdog(config.worker.block_timeout, self._end_stuck_worker):
                await anyio.to_thread.run_sync(
                    check_machine, config.environment_class, config.environment_settings, abandon_on_cancel=True
                )
                engine_stack = stack.enter_context(ExitStack())

                def get_engine_urls() -> tuple[str, ...]:
                    return (
                        self.supervisor_link.wait_for_instructions().engine_urls
                        if self.supervisor_link
                        else find_or_start_engines(config, self.directory, engine_stack)
                    )

                gateway_config = config.gateway
                if self.supervisor_link is not None:
                    gateway_config = gateway_config.for_launched_worker(os.getpid())
                policy = await stack.enter_async_context(
                    open_policy(config, self.directory, get_engine_urls, metrics, gateway_config=gateway_config)
                )
                queues = RunQueues(config, self.directory)
                tasks_queue = await stack.enter_async_context(queues.open_tasks())
                trajectories_queue = await stack.enter_async_context(queues.open_trajectories())
                claims = Claims(self.directory.claims_path(environment))
                metadata = build_run_metadata(config, self.directory.run_id)
                async with open_shared_resources(config.environment_class, config.environment_settings) as resources:
                    worker = Worker(config, policy, metadata, claims, tasks_queue, trajectories_queue, resources)
                    metrics.export_state(lambda: worker.in_flight, policy.engine, policy.version)
                    metrics.registry.register(OutcomeCollector(lambda: self._totals_to_export(worker)))
                    export.not_ready_reason = lambda: "the worker drains" if worker.draining else None
                    if self.supervisor_link is not None:
                        self.supervisor_link.start_reporting(
                            partial(_make_heartbeat, worker, tasks_queue), partial(_apply_instructions, worker)
                        )
                    else:
                        export.watch_queue(environment, "tasks", tasks_queue)
                        export.watch_queue(environment, "trajectories", trajectories_queue)
                    await self._play_until_stopped(worker, [engine.url for engine in policy.engine.replicas])

    def _end_stuck_worker(self, description: str) -> None:
        """Kill this process, because our own code hangs and cannot be interrupted."""
        failure = WorkerFailure(f"{description}; the worker is killed (worker.block_timeout).")
        log.error("worker is stuck", reason=failure.reason)
        if self.supervisor_link is not None:
            self.supervisor_link.die(failure)
        sys.stderr.write(f"rollout: {failure.reason}\n")
        kill_own_process_group()

    async def _export_metrics(self, metrics: WorkerMetrics, stack: AsyncExitStack) -> MetricsExport:
        """Export the metrics while the stack is open. A worker that a launch started plays even if it cannot serve."""
        target_file = ScrapeTargetFile(self.directory.metrics_path, self.name, {"run": self.directory.run_id})
        config = self.config.metrics
        if self.supervisor_link is not None:
            config = config.model_copy(update={"port": 0})  # the launch uses `metrics.port` on this machine
        stall_timeout = _MAX_FAILED_INTERRUPTS * self.config.worker.block_timeout + _STARTUP_SECONDS
        export = partial(
            export_metrics,
            metrics.registry,
            target_file,
            loop_monitor=metrics.loop_monitor,
            stall_timeout=stall_timeout,
        )
        try:
            return await stack.enter_async_context(export(config=config))
        except MetricsPortTaken as error:
            if self.supervisor_link is None:
                raise
            log.warning("the metrics are not served", error=str(error))  # metrics.host may be the launch's machine
            return await stack.enter_async_context(export(config=None))

    def _totals_to_export(self, worker: Worker) -> dict[str, OutcomeTotals]:
        """Return the totals of this worker; empty if the run has a launch, which exports the totals of all workers."""
        return {} if can_resume(self.directory.path) else {self.config.run.name: worker.totals}

    async def _play_until_stopped(self, worker: Worker, engine_urls: list[str]) -> None:
        async with anyio.create_task_group() as task_group:
            await task_group.start(self._stop_on_signals, worker, task_group.cancel_scope)
            log.info("worker ready", engines=engine_urls)
            if self.supervisor_link is None:
                task_group.start_soon(self._drain_when_run_ends, worker)
            await worker.run()
            task_group.cancel_scope.cancel()
        log.info("worker stopped", finished=worker.totals.rollouts)

    async def _stop_on_signals(
        self, worker: Worker, scope: anyio.CancelScope, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                if scope.deadline < float("inf"):
                    scope.cancel()
                log.info("worker drains", in_flight=worker.in_flight, grace=self.config.worker.grace)
                worker.drain()
                scope.deadline = anyio.current_time() + self.config.worker.grace

    async def _drain_when_run_ends(self, worker: Worker) -> None:
        """Drain when the launch has ended the run, because no more orders come."""
        ended_marker = anyio.Path(self.directory.ended_marker)
        while not await ended_marker.exists():  # noqa: ASYNC110 - another machine may create it
            await anyio.sleep(_RUN_END_CHECK_INTERVAL)
        log.info("the run has ended")
        worker.drain()


def _make_heartbeat(worker: Worker, tasks_queue: Queue) -> Heartbeat:
    return Heartbeat(
        ready=True, in_flight=worker.in_flight, finished=worker.totals.rollouts, lease_holder=tasks_queue.holder
    )


def _apply_instructions(worker: Worker, instructions: WorkerInstructions) -> None:
    worker.advance_version(instructions.policy_version)
    worker.require_version(instructions.required_version)


def _resize_thread_pools(concurrency: int) -> None:
    """Allow so many threads that environments leave some for queues and images."""
    thread_count = _BASE_THREADS + min(concurrency, _MAX_ENVIRONMENT_THREADS)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(thread_count, "worker"))
    anyio.to_thread.current_default_thread_limiter().total_tokens = thread_count


def _force_exit_after(seconds: float, exit_code: int) -> None:
    """Exit after this number of seconds, even if threads or tasks of environments still run."""

    def force_exit() -> None:
        time.sleep(seconds)
        log.warning("threads or tasks of environments still run", seconds=seconds)
        os._exit(exit_code)

    threading.Thread(target=force_exit, name="exit", daemon=True).start()


@contextmanager
def _limit_output() -> Iterator[None]:
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = LimitedOutput(out), LimitedOutput(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def default_worker_name(environment: str) -> str:
    """Return a name for a worker that has no supervisor."""
    return f"{environment}-{os.uname().nodename}-{os.getpid()}"
