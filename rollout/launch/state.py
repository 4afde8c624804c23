"""The state of a launch while it runs: of each environment, and of all together. Who shows a launch reads it."""

import math
import time
from collections import Counter, deque
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
from rollout.metrics.catalogue import ENGINE_RETRIES
from rollout.metrics.queues import QueueMonitor
from rollout.records.endings import RolloutLimit
from rollout.records.progress import TrainerProgress
from rollout.rundir.claims import Claims, Outcome
from rollout.rundir.directory import RunDirectory
from rollout.rundir.manifest import LaunchConfig
from rollout.rundir.outcomes import OutcomeTotals, mean_by_name
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
    """Something that whoever looks at a launch should know now.

    Attributes:
        text: one line.
        is_wait: whether it says what an environment waits for; it is repeated, and `EnvironmentState.wait` says it too.
    """

    text: str
    is_wait: bool = False


@dataclass(slots=True)
class EnvironmentState:
    """One environment of a launch, while the launch runs.

    Attributes:
        launch_config: the launch configuration of the environment.
        claims: the claims of the environment in this run.
        total_rollouts: how many rollouts the configuration asks for; 0 if others put the orders.
        rows_used: how many rows of the source of its tasks are played; None without such a source.
        tasks_queue: the queue with the orders; None until the environment is prepared.
        tasks_monitor: the state of that queue; None until the environment is prepared.
        feeder: sends the orders; None until the environment is prepared.
        engine_urls: the roots of the engines.
        worker_slots: the slots of the environment's workers.
        outcome_totals: how the rollouts of the run ended, as its claims say.
        control_queue: the queue with the trainer's progress; None until the environment is prepared.
        trainer_progress: the trainer's last progress; None until the first one has come.
        trajectories_monitor: the state of the trajectories queue; None until the environment is prepared.
        failure_limit: how many of its rollouts may fail in this launch; None until the environment is prepared.
        wait: what it waits for, once it has waited for a moment; None if it goes on.
    """

    launch_config: LaunchConfig
    claims: Claims
    total_rollouts: int = 0
    rows_used: RowsUsed | None = None
    tasks_queue: Queue | None = None
    tasks_monitor: QueueMonitor | None = None
    feeder: Feeder | None = None
    engine_urls: tuple[str, ...] = ()
    worker_slots: list[WorkerSlot] = field(default_factory=list)
    outcome_totals: OutcomeTotals = field(init=False)
    control_queue: Queue | None = None
    trainer_progress: TrainerProgress | None = None
    trajectories_monitor: QueueMonitor | None = None
    failure_limit: FailureLimit | None = None
    wait: Wait | None = None

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
    def request_retries(self) -> int:
        """How many requests its workers of this launch sent to an engine once more."""
        return sum(
            int(value)
            for slot in self.worker_slots
            for (name, _), value in slot.metric_totals.values().items()
            if name == ENGINE_RETRIES.name
        )

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
        self.too_many_failures: TooManyFailures | None = None
        self.notices: deque[Notice] = deque(maxlen=_MAX_NOTICES)
        self.started_at = time.monotonic()
        self.elapsed_seconds = 0.0

    def stop_early(self) -> None:
        """Let the workers finish their rollouts and start no others; if there are no workers yet, end."""
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
            "environments": {
                environment.name: {
                    **_summarize(outcomes_by_environment[environment.name]),
                    "rows": asdict(environment.rows_used) if environment.rows_used is not None else None,
                }
                for environment in self.environments
            },
            "request_retries": sum(state.request_retries for state in self.environments),
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


def _summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    rewards = [outcome.reward for outcome in outcomes if outcome.reward is not None]
    return {
        "rollouts": len(outcomes),
        "status": dict(Counter(outcome.status for outcome in outcomes)),
        "reward_mean": math.fsum(rewards) / len(rewards) if rewards else None,
        "rewards": mean_by_name(outcome.rewards for outcome in outcomes),
        "metrics": mean_by_name(outcome.metrics for outcome in outcomes),
        "turns": sum(outcome.turns for outcome in outcomes),
        "images": sum(outcome.images for outcome in outcomes),
        "tokens": sum(outcome.tokens for outcome in outcomes),
        "retries": sum(outcome.retries for outcome in outcomes),
        "retry_reason": next((outcome.retry_reason for outcome in outcomes if outcome.retry_reason), None),
        "close_failures": sum(outcome.close_failed for outcome in outcomes),
        "limits": dict(Counter(outcome.limit for outcome in outcomes if outcome.limit != RolloutLimit.NONE)),
    }
