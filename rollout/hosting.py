"""A process that is one worker: it gets ready, plays what the tasks queue has, and drains when it is told to stop."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass

import anyio
import structlog

from renderers_adapter.errors import AdapterError
from rollout.claims import Claims
from rollout.config import Config
from rollout.containment import GuardedOutput, LoopWatchdog, refuse_forks
from rollout.errors import RolloutError, first_failure
from rollout.images.maintenance import hold_run
from rollout.link import Beat, Halted, Orders, Report, SupervisorLink
from rollout.rundir import RunDirectory
from rollout.startup import engine_urls, open_policy, run_facts
from rollout.telemetry import json_log
from rollout.worker import Worker
from transports import Queue, QueueError, open_queue

log = structlog.get_logger()


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
            reason = ""
            try:
                anyio.run(self._work)
            except BaseException as error:
                failure = first_failure(error, (RolloutError, QueueError, AdapterError))
                reason = str(failure)
                log.error("worker ends", exc_info=failure)
                raise failure from None
            finally:
                if self.link is not None:
                    self.link.close([Halted(reason)] if reason else [])

    async def _work(self) -> None:
        config, environment = self.config, self.config.run.name
        async with AsyncExitStack() as stack:
            with LoopWatchdog(config.worker.block_timeout) as watchdog:
                engines = stack.enter_context(ExitStack())

                def urls() -> tuple[str, ...]:
                    return (
                        self.link.first_orders().engines if self.link else engine_urls(config, self.directory, engines)
                    )

                policy = await stack.enter_async_context(open_policy(config, self.directory, urls))
                queue = config.queue
                tasks = open_queue(self.directory.url(queue.tasks, environment), lease="record")
                trajectories = open_queue(self.directory.url(queue.url, environment))
                await stack.enter_async_context(tasks)
                await stack.enter_async_context(trajectories)
                claims = Claims(self.directory.claims(environment))
                facts = run_facts(config, self.directory.run)
                worker = Worker(config, policy, facts, claims, tasks, trajectories)
                if self.link is not None:
                    self.link.start(lambda: _news(worker, watchdog, tasks), lambda orders: _follow(worker, orders))
                log.info("worker ready", engines=[engine.url for engine in policy.engine.engines])
                await self._play(worker)

    async def _play(self, worker: Worker) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._stop_on_signals, worker, group.cancel_scope)
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


def _news(worker: Worker, watchdog: LoopWatchdog, tasks: Queue) -> Iterator[Report]:
    counters = worker.counters
    yield Beat(
        ready=True,
        in_flight=counters.in_flight,
        finished=counters.finished,
        turns=counters.turns,
        tokens=counters.tokens,
        reward=counters.reward,
        rewards=counters.rewards,
        retries=counters.retries,
        lag=watchdog.lag,
        holder=tasks.holder,
        status=dict(counters.status),
    )
    while worker.failures:
        yield worker.failures.pop(0)


def _follow(worker: Worker, orders: Orders) -> None:
    worker.learn_version(orders.policy_version)


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
