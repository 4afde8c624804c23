"""The state of a launch while it runs: of each environment, and of all together. The displays read it."""

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
    """What an environment of a launch waits for.

    Attributes:
        TRAINER_READS: the backlog of trajectories is at its high water.
        TRAINER_VERSION: `policy.max_staleness` allows no more rollouts.
        WORKERS: nobody has taken an order, and the launch starts no workers itself.
        ORDERS: others put the orders, and there are none.
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
        waited_for: what it waits for.
        text: one sentence or two for people, with what to do.
    """

    waited_for: WaitedFor
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """News for the person who watches a launch.

    Attributes:
        text: one line.
        is_wait: whether it says what an environment waits for. It is then repeated, and `EnvironmentState.wait` has it.
    """

    text: str
    is_wait: bool = False


@dataclass(slots=True)
class EnvironmentState:
    """One environment of a launch, while the launch runs.

    Attributes:
        launch_config: the launch configuration of the environment.
        claims: the claims of the environment in this run.
        outcome_totals: how its rollouts of the run ended, as of the last refresh of `LaunchState.outcomes`.
        total_rollouts: how many rollouts the configuration asks for; 0 if others put the orders.
        rows_used: how many rows of the source of its tasks are played; None without such a source.
        tasks_queue: the queue with the orders; None until the environment is prepared.
        tasks_monitor: the state of that queue; None until the environment is prepared.
        feeder: sends the orders; None until the environment is prepared.
        engine_urls: the roots of the engines.
        worker_slots: the slots of the environment's workers.
        control_queue: the queue with the trainer's progress; None until the environment is prepared.
        trainer_progress: the trainer's last progress; None until the first one has come.
        trajectories_monitor: the state of the trajectories queue; None until the environment is prepared.
        failure_limit: how many of its rollouts may fail in this launch; None until the environment is prepared.
        wait: what it waits for, once it has waited for a moment; None if it goes on.
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
        """The bytes of the trajectories queue that the trainer has not consumed."""
        return self.trajectories_monitor.latest_stats.backlog_bytes if self.trajectories_monitor is not None else 0

    @property
    def name(self) -> str:
        """The name of the environment in the run."""
        return self.launch_config.config.run.name

    @property
    def is_fed_externally(self) -> bool:
        """Whether somebody else puts its orders; it then runs until it is stopped."""
        return self.launch_config.config.tasks.source == QUEUE_SOURCE

    @property
    def in_flight(self) -> int:
        """How many rollouts the workers of this launch play now."""
        return sum(slot.heartbeat.in_flight for slot in self.worker_slots)

    @property
    def ready_workers(self) -> int:
        """How many workers of this launch take orders."""
        return sum(slot.heartbeat.ready for slot in self.worker_slots)


class LaunchState:
    """A launch while it runs. A display reads it, and ends it with `stop_early` and `kill`.

    Attributes:
        directory: the run's directory.
        environments: the state of each environment.
        workers_per_environment: how many workers the launch starts for each environment.
        place: where the workers run.
        is_resumed: whether the orders on the tasks queue are those of an earlier launch of this run.
        outcomes: how the rollouts of the run ended.
        supervisor: supervises the workers; None until all environments are prepared.
        startup_scope: cancelled if the launch is stopped before it has workers; None before the start.
        stopping_early: whether the launch is stopped before every rollout has ended.
        too_many_failures: why the launch stops, if too many rollouts failed.
        notices: news that no display has shown yet.
        started_at: when the launch started, by the monotonic clock.
        elapsed_seconds: how long the launch took; 0 while it goes on.
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
        self.stopping_early = False
        self.too_many_failures: TooManyFailures | None = None
        self.notices: deque[Notice] = deque(maxlen=_MAX_NOTICES)
        self.started_at = time.monotonic()
        self.elapsed_seconds = 0.0

    def stop_early(self) -> None:
        """Let the workers finish their rollouts and accept no others; without workers, end at once."""
        self.stopping_early = True
        if self.supervisor is not None:
            self.supervisor.drain()
        elif self.startup_scope is not None:
            self.startup_scope.cancel()

    def stop_for_failures(self, failure: TooManyFailures) -> None:
        """Stop early because too many rollouts failed; workers that joined the run leave it too."""
        self.too_many_failures = self.too_many_failures or failure
        self.notices.append(Notice(f"stopping: {failure}"))
        self.directory.ended_marker.touch()
        self.stop_early()

    def kill(self) -> None:
        """End the workers now; the next launch plays what they did not finish."""
        if self.supervisor is not None:
            self.supervisor.kill()

    def report(self) -> dict[str, Any]:
        """Return the summary of the whole run, earlier launches included, as `--json` prints it."""
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
        """Return the errors of the failed rollouts of the whole run, each once."""
        self.outcomes.refresh(at_once=True)
        return [error for error in self.outcomes.totals.errors.distinct() if error.status == RolloutStatus.FAILED]
