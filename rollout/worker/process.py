"""A process that is one worker: it gets ready, plays what the tasks queue has, and drains when it is told to stop."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
import structlog

from renderers_adapter.errors import AdapterError
from rollout.config.load import Config
from rollout.errors import RolloutError, first_failure
from rollout.log import json_log
from rollout.metrics.export import Export, exporting
from rollout.metrics.server import Announcement
from rollout.metrics.totals import Changes
from rollout.metrics.worker import WorkerMetrics
from rollout.rundir.assets import hold_run
from rollout.rundir.claims import Claims
from rollout.rundir.directory import RunDirectory
from rollout.worker.containment import GuardedOutput, LoopWatchdog, refuse_exits, refuse_forks
from rollout.worker.link import Beat, Halted, Orders, SupervisorLink
from rollout.worker.setup import engine_urls, open_policy, run_facts
from rollout.worker.worker import Worker
from transports import Queue, QueueError, open_queue

log = structlog.get_logger()

_OUR_THREADS = 32
_THEIR_THREADS = 96
"""At most; thousands of threads would hold a good part of a worker's memory."""
_LEAVE = 5.0
"""Seconds that a worker which is done has to end."""
_INTERRUPTIONS = 2
"""Times that the watchdog may fail to interrupt whoever holds the loop before the worker is not well."""
_GETTING_READY = 60.0
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class Host:
    """Where and as whom a worker works. `name` is unique among the workers of a run that are alive."""

    config: Config
    directory: RunDirectory
    name: str
    link: SupervisorLink | None = None

    def work(self) -> None:
        """Play until a signal: the first one drains for up to `worker.grace` seconds, a second one ends it now.

        Raises:
            RolloutError, QueueError, AdapterError: it could not get ready, or its infrastructure failed for good.
        """
        self.directory.make()
        refuse_forks()
        path = self.directory.path / "workers" / f"{self.name}.jsonl"
        log_file = json_log(path, run=self.directory.run, worker=self.name)
        with hold_run(self.directory.path), log_file, _guarded_output():
            failure = anyio.run(self._work)
        if failure is not None:
            raise failure

    async def _work(self) -> BaseException | None:
        """Play, and say why it failed, where it did."""
        failure: BaseException | None = None
        try:
            await self._get_ready_and_play()
        except Exception as error:
            failure = first_failure(error, (RolloutError, QueueError, AdapterError))
            log.error("worker ends", exc_info=failure)
        if self.link is not None:
            self.link.close(Halted(str(failure)) if failure is not None else None)
        _exit_within(_LEAVE, 0 if failure is None else 1)
        return failure

    async def _get_ready_and_play(self) -> None:
        config, environment = self.config, self.config.run.name
        _widen_threads(config.worker.concurrency)
        refuse_exits(asyncio.get_running_loop())
        metrics = WorkerMetrics(environment)
        async with AsyncExitStack() as stack:
            export = await stack.enter_async_context(self._exporting(metrics))
            with LoopWatchdog(config.worker.block_timeout) as watchdog:
                engines = stack.enter_context(ExitStack())

                def urls() -> tuple[str, ...]:
                    return (
                        self.link.first_orders().engines if self.link else engine_urls(config, self.directory, engines)
                    )

                policy = await stack.enter_async_context(open_policy(config, self.directory, urls, metrics))
                queue = config.queue
                tasks = open_queue(self.directory.url(queue.tasks, environment), lease="record")
                trajectories = open_queue(self.directory.url(queue.url, environment))
                await stack.enter_async_context(tasks)
                await stack.enter_async_context(trajectories)
                claims = Claims(self.directory.claims(environment))
                facts = run_facts(config, self.directory.run)
                worker = Worker(config, policy, facts, claims, tasks, trajectories)
                metrics.read(worker.counters, policy.engine, policy.version)
                export.unready = lambda: "it drains" if worker.draining else None
                if self.link is not None:
                    beat = partial(_beat, worker, watchdog, tasks, Changes(metrics.registry))
                    self.link.ready(beat, partial(_follow, worker))
                else:
                    export.watch(environment, "tasks", tasks)
                    export.watch(environment, "trajectories", trajectories)
                log.info("worker ready", engines=[engine.url for engine in policy.engine.engines])
                await self._play(worker)

    def _exporting(self, metrics: WorkerMetrics) -> AbstractAsyncContextManager[Export]:
        """A worker with a supervisor tells it; one that is alone serves its metrics itself."""
        announcement = Announcement(self.directory.metrics, self.name, {"run": self.directory.run})
        config = self.config.metrics if self.link is None else None
        patience = _INTERRUPTIONS * self.config.worker.block_timeout + _GETTING_READY
        return exporting(metrics.registry, announcement, config, pulse=metrics.pulse, patience=patience)

    async def _play(self, worker: Worker) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._stop_on_signals, worker, group.cancel_scope)
            if self.link is None:
                group.start_soon(self._leave_with_the_run, worker)
            await worker.run()
            group.cancel_scope.cancel()
        log.info("worker stopped", finished=worker.counters.finished)

    async def _stop_on_signals(self, worker: Worker, scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                if scope.deadline < float("inf"):
                    scope.cancel()
                log.info("worker drains", in_flight=worker.counters.in_flight, grace=self.config.worker.grace)
                worker.drain()
                scope.deadline = anyio.current_time() + self.config.worker.grace

    async def _leave_with_the_run(self, worker: Worker) -> None:
        """Who joined a run that somebody else launched has nothing to wait for once that is over."""
        ended = anyio.Path(self.directory.ended)
        while not await ended.exists():  # noqa: ASYNC110 - it is another machine that makes it
            await anyio.sleep(_LOOK)
        log.info("the run has ended")
        worker.drain()


def _beat(worker: Worker, watchdog: LoopWatchdog, tasks: Queue, changes: Changes) -> Beat:
    counters = worker.counters
    return Beat(
        ready=True,
        in_flight=counters.in_flight,
        turns=counters.turns,
        tokens=counters.tokens,
        retries=counters.retries,
        lag=watchdog.lag,
        holder=tasks.holder,
        metrics=changes.take(),
    )


def _follow(worker: Worker, orders: Orders) -> None:
    worker.learn_version(orders.policy_version)
    worker.require_version(orders.required)


def _widen_threads(concurrency: int) -> None:
    """Room for what environments do in threads, so that it is never queues and images that wait for a thread."""
    threads = _OUR_THREADS + min(concurrency, _THEIR_THREADS)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads, "worker"))
    anyio.to_thread.current_default_thread_limiter().total_tokens = threads


def _exit_within(seconds: float, code: int) -> None:
    """A thread, or a task that catches its cancellation, may have been left behind; nobody waits for it."""

    def leave() -> None:
        time.sleep(seconds)
        log.warning("what environments left behind was still running", seconds=seconds)
        os._exit(code)

    threading.Thread(target=leave, name="exit", daemon=True).start()


@contextmanager
def _guarded_output() -> Iterator[None]:
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = GuardedOutput(out), GuardedOutput(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def worker_name(environment: str) -> str:
    """For a worker that no supervisor named."""
    return f"{environment}-{os.uname().nodename}-{os.getpid()}"
