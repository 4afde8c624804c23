"""Keeps worker processes running: starts them, reads their heartbeats, and replaces workers that die.

The leases of a dead worker expire at once. A restart budget limits the number of restarts. A separate thread of the
worker sends the heartbeats, even if its event loop is blocked. A worker is killed only if no heartbeat comes for two
minutes. A `Place` starts the processes, on this machine or on others.
"""

import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskGroup

from rollout.errors import ConfigurationError, RolloutError
from rollout.launch.places import NotStarted, Place, WorkerProcess
from rollout.worker.link import Heartbeat, WorkerFailure, WorkerInstructions, decode_report, encode_instructions
from transports import Queue, QueueError

log = structlog.get_logger()

_HEARTBEAT_TIMEOUT = 120.0
"""Seconds without a heartbeat after which a worker is killed, because even its threads do not run."""
_DRAIN_MARGIN_SECONDS = 15.0
"""A worker that should drain is killed this number of seconds after `worker.grace` has passed."""
_RESTART_WINDOW_SECONDS = 3600.0
_FINAL_REPORT_TIMEOUT = 1.0
_EXPIRE_LEASES_TIMEOUT = 5.0
"""Seconds in which the queue must expire the leases of a dead worker. Otherwise, they expire later by themselves."""
_RESTART_PAUSES_SECONDS = (0.2, 30.0)


class WorkersDie(RolloutError):
    """The workers of an environment died more times than the restart budget allows."""


class WorkersUnusable(ConfigurationError):
    """A worker could not start because of the configuration or its machine, so that no restart can help."""


class RestartBudget:
    """Limits the restarts of the workers of one environment to `max_restarts` within an hour."""

    def __init__(self, max_restarts: int) -> None:
        self._max_restarts = max_restarts
        self._restart_times: deque[float] = deque()

    def spend(self) -> bool:
        """Use one restart, and return True; return False if no restart is left."""
        now = time.monotonic()
        while self._restart_times and self._restart_times[0] < now - _RESTART_WINDOW_SECONDS:
            self._restart_times.popleft()
        if len(self._restart_times) >= self._max_restarts:
            return False
        self._restart_times.append(now)
        return True


@dataclass(slots=True)
class WorkerDeath:
    """The death of a worker: it ended although nobody stopped it.

    Attributes:
        worker: the worker's name.
        environment: the name of its environment.
        exit_code: the exit code of its process; a negative code is the signal that ended it.
        reason: the reason that the worker reported; empty if it reported none.
    """

    worker: str
    environment: str
    exit_code: int
    reason: str

    @property
    def description(self) -> str:
        """A text with the exit code or the signal."""
        return f"signal {signal.Signals(-self.exit_code).name}" if self.exit_code < 0 else f"exit code {self.exit_code}"


@dataclass(slots=True)
class WorkerSlot:
    """A slot in which one worker runs at a time. When this worker dies, the next one starts in the same slot.

    Attributes:
        name: the name of the slot, and of each worker in it.
        environment: the name of the environment.
        command: the command line of a worker, without the descriptor of its link.
        output_path: the file for the output of the workers.
        tasks_queue: the queue on which the leases of a dead worker are expired.
        grace_seconds: the seconds in which a worker that drains may finish its rollouts.
        restart_budget: limits the restarts; all slots of an environment share it.
        process: the worker that runs now; None between two workers.
        heartbeat: the last heartbeat of this worker.
        last_heard: the time when that heartbeat came or the worker started, by the monotonic clock.
    """

    name: str
    environment: str
    command: tuple[str, ...]
    output_path: Path
    tasks_queue: Queue
    grace_seconds: float
    restart_budget: RestartBudget
    process: WorkerProcess | None = None
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    last_heard: float = 0.0


class Supervisor:
    """Supervises all workers of a launch.

    Args:
        slots: the slots of the workers.
        instructions_for: takes the name of an environment, and returns the instructions for its workers.
        place: where the workers run.

    Attributes:
        slots: the slots of the workers.
        deaths: the workers that died.
    """

    def __init__(
        self, slots: list[WorkerSlot], instructions_for: Callable[[str], WorkerInstructions], place: Place
    ) -> None:
        self.slots = slots
        self._place = place
        self.deaths: list[WorkerDeath] = []
        self._instructions_for = instructions_for
        self._ready_environments: set[str] = set()
        self._end_signal: signal.Signals | None = None
        self._end_requested = anyio.Event()

    async def run(self) -> None:
        """Keep a worker running in every slot until `drain` or `kill` is called.

        Raises:
            WorkersDie: the workers of an environment died more times than its restart budget allows.
            WorkersUnusable: before any worker of an environment was ready, one reported an error of the configuration.
        """
        async with self._place:
            try:
                async with anyio.create_task_group() as task_group:
                    for slot in self.slots:
                        task_group.start_soon(self._keep_running, slot, task_group)
                    await self._end_requested.wait()
            finally:
                self.kill()

    def drain(self) -> None:
        """Let every worker finish its rollouts within `worker.grace`, and start no more workers."""
        self._end_signal = self._end_signal or signal.SIGTERM
        self._end_requested.set()
        for slot in self.slots:
            if slot.process is not None:
                slot.process.send_signal(self._end_signal)

    def kill(self) -> None:
        """Kill every worker now. The leases of the orders that they did not finish are expired."""
        self._end_signal = signal.SIGKILL
        self._end_requested.set()
        for slot in self.slots:
            if slot.process is not None:
                slot.process.kill()

    def send_instructions(self) -> None:
        """Send the newest instructions to every worker."""
        for slot in self.slots:
            if slot.process is not None:
                slot.process.send_line(encode_instructions(self._instructions_for(slot.environment)))

    async def _keep_running(self, slot: WorkerSlot, task_group: TaskGroup) -> None:
        pause, max_pause = _RESTART_PAUSES_SECONDS
        while self._end_signal is None:
            exit_code, failures = await self._run_once(slot, task_group)
            if self._end_signal is not None:
                return
            reason = "; ".join(failure.reason for failure in failures)
            made_progress = slot.heartbeat.finished > 0
            death = self._record_death(slot, exit_code, reason)
            # If a worker was ready before, the machine has changed since then, and may become right again.
            if slot.environment not in self._ready_environments and any(f.is_configuration for f in failures):
                raise WorkersUnusable(f"the workers of {slot.environment} cannot start: {reason}")
            if not slot.restart_budget.spend():
                cause = (
                    reason or f"the last worker, {slot.name}, ended with {death.description}; see {slot.output_path}"
                )
                raise WorkersDie(
                    f"the workers of {slot.environment} died more times than worker.restarts allows: {cause}"
                )
            pause = _RESTART_PAUSES_SECONDS[0] if made_progress else min(2 * pause, max_pause)
            with anyio.move_on_after(pause):
                await self._end_requested.wait()

    async def _run_once(self, slot: WorkerSlot, supervisor_group: TaskGroup) -> tuple[int, list[WorkerFailure]]:
        """Run a worker until it ends; return its exit code and the failures that it reported."""
        try:
            process = await self._place.start(slot.name, slot.command, slot.output_path)
        except NotStarted as error:
            return 1, [WorkerFailure(str(error))]
        slot.process, slot.heartbeat, slot.last_heard = process, Heartbeat(), time.monotonic()
        log.info("worker started", worker=slot.name, pid=process.pid)
        if self._end_signal is not None:  # the signal came while the process started
            process.send_signal(self._end_signal)
        failures: list[WorkerFailure] = []
        all_lines_read = anyio.Event()
        try:
            process.send_line(encode_instructions(self._instructions_for(slot.environment)))
            async with anyio.create_task_group() as worker_group:
                worker_group.start_soon(self._read_reports, slot, process, failures, all_lines_read)
                worker_group.start_soon(self._kill_if_silent, slot, process)
                exit_code = await process.wait()
                log.info("worker ended", worker=slot.name, pid=process.pid, code=exit_code)
                process.kill()  # also kills the processes that the worker started
                if slot.heartbeat.lease_holder:
                    supervisor_group.start_soon(self._give_back_orders, slot, slot.heartbeat.lease_holder)
                with anyio.move_on_after(_FINAL_REPORT_TIMEOUT):
                    await all_lines_read.wait()
                worker_group.cancel_scope.cancel()
        finally:
            slot.process = None
            await process.aclose()
        return exit_code, failures

    async def _read_reports(
        self, slot: WorkerSlot, process: WorkerProcess, failures: list[WorkerFailure], all_lines_read: anyio.Event
    ) -> None:
        async for line in process.read_lines():
            match report := decode_report(line):
                case Heartbeat():
                    if report.ready and not slot.heartbeat.ready:
                        log.info("worker ready", worker=slot.name, pid=process.pid)
                        self._ready_environments.add(slot.environment)
                    slot.heartbeat, slot.last_heard = report, time.monotonic()
                case WorkerFailure():
                    failures.append(report)
        all_lines_read.set()

    async def _give_back_orders(self, slot: WorkerSlot, lease_holder: str) -> None:
        """Expire the leases of a dead worker, so that other workers get its orders.

        This runs in the background, because a queue may be slow.
        """
        try:
            with anyio.fail_after(_EXPIRE_LEASES_TIMEOUT, shield=True):
                await slot.tasks_queue.expire_leases(lease_holder)
        except (QueueError, TimeoutError) as error:
            log.warning(
                "the leases of a dead worker could not be expired now; they expire later by themselves",
                worker=slot.name,
                error=str(error),
            )

    async def _kill_if_silent(self, slot: WorkerSlot, process: WorkerProcess) -> None:
        stopping_since: float | None = None
        while True:
            await anyio.sleep(1.0)
            now = time.monotonic()
            stopping_since = now if self._end_signal is not None and stopping_since is None else stopping_since
            overdue = stopping_since is not None and now - stopping_since > slot.grace_seconds + _DRAIN_MARGIN_SECONDS
            if overdue or now - slot.last_heard > _HEARTBEAT_TIMEOUT:
                log.warning("worker does not answer", worker=slot.name, pid=process.pid, silent=now - slot.last_heard)
                process.kill()

    def _record_death(self, slot: WorkerSlot, exit_code: int, reason: str) -> WorkerDeath:
        slot.heartbeat = Heartbeat()
        death = WorkerDeath(slot.name, slot.environment, exit_code, reason)
        self.deaths.append(death)
        log.warning("worker died", worker=slot.name, code=exit_code, reason=reason)
        return death
