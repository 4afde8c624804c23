"""The state of a running launch: of each environment, and of the whole launch. The displays show it."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import anyio

from rollout.environments.base import QUEUE_SOURCE
from rollout.launch.failure_limit import FailureLimit, TooManyFailures
from rollout.launch.feeder import Feeder
from rollout.launch.places import Place
from rollout.launch.supervisor import Supervisor, WorkerSlot
from rollout.metrics.queues import QueueMonitor
from rollout.records.endings import RolloutStatus
from rollout.records.progress import TrainerProgress
from rollout.rundir.claims import Claims
from rollout.rundir.directory import RunDirectory
from rollout.rundir.manifest import LaunchConfig
from rollout.rundir.outcomes import DistinctError, OutcomeTotals, RunOutcomes
from rollout.tasks.sources import RowsUsed
from transports import Queue

_MAX_NOTICES = 100


class WaitedFor(StrEnum):
    """The reason why an environment of a launch waits.

    Attributes:
        TRAINER_READS: the trainer must read, because the backlog of trajectories has reached its high water.
        TRAINER_VERSION: `policy.max_staleness` allows no more rollouts until the trainer has a new version.
        WORKERS: no worker has taken an order, and the launch starts no workers itself.
        ORDERS: another program puts the orders, and there are none.
        ENGINES: no worker is ready, because no engine answers.
        EARLIER_ORDERS: a worker still holds orders of an earlier launch.
    """

    TRAINER_READS = "trainer_reads"
    TRAINER_VERSION = "trainer_version"
    WORKERS = "workers"
    ORDERS = "orders"
    ENGINES = "engines"
    EARLIER_ORDERS = "earlier_orders"


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait of one environment.

    Attributes:
        waited_for: the reason of the wait.
        text: one or two sentences that say why the environment waits, and what to do.
    """

    waited_for: WaitedFor
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A message for the person who watches a launch.

    Attributes:
        text: the message, one line.
        is_wait: whether the message says why an environment waits. Such a message is repeated while the wait lasts.
    """

    text: str
    is_wait: bool = False


@dataclass(slots=True)
class EnvironmentState:
    """One environment of a launch, while the launch runs.

    Attributes:
        launch_config: the launch configuration of the environment.
        claims: the claims of the environment in this run.
        outcome_totals: the totals of the environment's rollouts at the last refresh of `LaunchState.outcomes`.
        total_rollouts: the number of rollouts in the configuration; 0 if another program puts the orders.
        rows_used: how many rows of `tasks.source` are played; None if the tasks come from no such source.
        tasks_queue: the queue with the orders; None until the environment is prepared.
        tasks_monitor: watches the tasks queue; None until the environment is prepared.
        feeder: sends the orders; None until the environment is prepared.
        engine_urls: the root URLs of the engines.
        worker_slots: the slots of the environment's workers.
        control_queue: the queue with the trainer's progress; None until the environment is prepared.
        trainer_progress: the last progress that the trainer reported; None until its first report.
        trajectories_monitor: watches the trajectories queue; None until the environment is prepared.
        failure_limit: limits the failed rollouts of this launch; None until the environment is prepared.
        wait: why the environment waits, if it has waited for more than a moment; None if it does not wait.
    """

    launch_config: LaunchConfig
    claims: Claims
    outcome_totals: OutcomeTotals
    total_rollouts: int = 0
    rows_used: RowsUsed | None = None
    tasks_queue: Queue | None = None
    tasks_monitor: QueueMonitor | None = None
    feeder: Feeder | None = None
    engine_urls: tuple[str, ...] = ()
    worker_slots: list[WorkerSlot] = field(default_factory=list)
    control_queue: Queue | None = None
    trainer_progress: TrainerProgress | None = None
    trajectories_monitor: QueueMonitor | None = None
    failure_limit: FailureLimit | None = None
    wait: Wait | None = None

    @property
    def backlog_bytes(self) -> int:
        """The backlog of the trajectories queue, in bytes."""
        return self.trajectories_monitor.latest_stats.backlog_bytes if self.trajectories_monitor is not None else 0

    @property
    def name(self) -> str:
        """The name of the environment in the run."""
        return self.launch_config.config.run.name

    @property
    def is_fed_externally(self) -> bool:
        """Whether another program puts the orders. The environment then runs until the launch is stopped."""
        return self.launch_config.config.tasks.source == QUEUE_SOURCE

    @property
    def in_flight(self) -> int:
        """The number of rollouts that the workers of this launch play now."""
        return sum(slot.heartbeat.in_flight for slot in self.worker_slots)

    @property
    def ready_workers(self) -> int:
        """The number of workers of this launch that take orders now."""
        return sum(slot.heartbeat.ready for slot in self.worker_slots)


class LaunchState:
    """The state of a running launch. A display shows it, and ends the launch with `stop_early` and `kill`.

    Attributes:
        directory: the run's directory.
        environments: the state of each environment.
        workers_per_environment: the number of workers that the launch starts for each environment.
        place: where the workers run.
        is_resumed: whether the launch continues a run. The tasks queue may then hold orders of the earlier launch.
        outcomes: the outcomes of the run's rollouts.
        supervisor: supervises the workers; None until all environments are prepared.
        launch_number: the number of the launch in its run, from 1 on; 0 before the start.
        startup_scope: is cancelled if the launch is stopped before it has workers; None before the start.
        stopping_early: whether the launch was stopped before all rollouts ended.
        too_many_failures: the error of a launch that stops because too many rollouts failed; otherwise None.
        notices: messages that no display has shown yet.
        started_at: the time when the launch started, by the monotonic clock.
        elapsed_seconds: the seconds that the launch took; 0 while it runs.
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
        names = [launch_config.config.run.name for launch_config in launch_configs]
        claims = {name: Claims(directory.claims_path(name)) for name in names}
        self.outcomes = RunOutcomes(claims)
        self.environments = [
            EnvironmentState(launch_config, claims[name], self.outcomes.by_environment[name])
            for name, launch_config in zip(names, launch_configs, strict=True)
        ]
        self.workers_per_environment = workers_per_environment
        self.supervisor: Supervisor | None = None
        self.startup_scope: anyio.CancelScope | None = None
        self.launch_number = 0
        self.stopping_early = False
        self.too_many_failures: TooManyFailures | None = None
        self.notices: deque[Notice] = deque(maxlen=_MAX_NOTICES)
        self.started_at = time.monotonic()
        self.elapsed_seconds = 0.0

    def stop_early(self) -> None:
        """Let the workers finish their rollouts and start no others. If there are no workers yet, end at once."""
        self.stopping_early = True
        if self.supervisor is not None:
            self.supervisor.drain()
        elif self.startup_scope is not None:
            self.startup_scope.cancel()

    def stop_for_failures(self, failure: TooManyFailures) -> None:
        """Stop early because too many rollouts failed. Workers that joined the run drain, too."""
        self.too_many_failures = self.too_many_failures or failure
        self.notices.append(Notice(f"stopping: {failure}"))
        self.directory.ended_marker.touch()
        self.stop_early()

    def kill(self) -> None:
        """Kill the workers now. The next launch plays the rollouts that they did not finish."""
        if self.supervisor is not None:
            self.supervisor.kill()

    def report(self) -> dict[str, Any]:
        """Return the summary of the whole run, including earlier launches, as `--json` prints it."""
        self.outcomes.refresh(at_once=True)
        return {
            **self.outcomes.totals.report(),
            "total": sum(environment.total_rollouts for environment in self.environments),
            "environments": {
                environment.name: {
                    **environment.outcome_totals.report(),
                    "rows": asdict(environment.rows_used) if environment.rows_used is not None else None,
                }
                for environment in self.environments
            },
            "deaths": len(self.supervisor.deaths) if self.supervisor else 0,
            "run_dir": str(self.directory.path),
            "seconds": round(self.elapsed_seconds, 3),
        }

    def failures(self) -> list[DistinctError]:
        """Return the errors of the failed rollouts of the whole run; equal errors are returned once."""
        self.outcomes.refresh(at_once=True)
        return [error for error in self.outcomes.totals.errors.distinct() if error.status == RolloutStatus.FAILED]
