"""Reports what a launch waits for: a trainer, workers, orders, or an engine.

A launch that waits looks like a launch that hangs. So each environment is checked twice a second. The log and the
display get a line when a wait has lasted a moment, again each minute, and when the wait ends.
"""

import shlex
import time
from collections.abc import Sequence
from datetime import datetime

import anyio
import structlog
from rich.filesize import decimal

from rollout.config.problems import show_override
from rollout.engine.errors import EngineError, EngineUnavailable, EngineUnreachable
from rollout.engine.from_config import api_key_from_config
from rollout.engine.httpx_transport import HttpxTransport
from rollout.errors import ConfigurationError
from rollout.launch.state import EnvironmentState, LaunchState, Notice, Wait, WaitedFor
from rollout.records.progress import TrainerProgress
from transports import QueueError
from transports.base import QueueStats

log = structlog.get_logger()

_LOOK_INTERVAL = 0.5
_SETTLE_SECONDS = 1.5
"""A shorter wait is not reported, because a queue is often empty or full for a moment."""
_REPEAT_SECONDS = 60.0
_PROBE_TIMEOUT = 1.0


class ReadingClock:
    """Finds out from the statistics of a queue when a consumer last acked records."""

    def __init__(self) -> None:
        self.last_read = datetime.now().astimezone()
        self._previous = QueueStats(0, 0, 0.0, 0, 0)

    def update(self, stats: QueueStats) -> None:
        """Compare the statistics with the last ones: a smaller backlog or a lower oldest age means an ack."""
        if stats.backlog_records < self._previous.backlog_records or stats.oldest_age < self._previous.oldest_age:
            self.last_read = datetime.now().astimezone()
        self._previous = stats


class WaitWatcher:
    """Watches one environment of a launch, and stores in its `wait` why it waits."""

    def __init__(self, environment: EnvironmentState, state: LaunchState) -> None:
        self._environment = environment
        self._state = state
        self._config = environment.launch_config.config
        self._reading_clock = ReadingClock()
        self._wait_began = 0.0
        self._last_reported = -_REPEAT_SECONDS
        self._pending: Wait | None = None

    async def run(self) -> None:
        """Check the environment twice a second, until cancelled."""
        while True:
            self._note(await self.find_wait(), time.monotonic())
            await anyio.sleep(_LOOK_INTERVAL)

    async def find_wait(self) -> Wait | None:
        """Return why the environment waits now; None if it plays rollouts, has ended, or still starts."""
        environment, feeder = self._environment, self._environment.feeder
        if self._state.stopping_early or feeder is None or feeder.all_finished:
            return None
        if feeder.leftover_count:
            return Wait(
                WaitedFor.EARLIER_ORDERS,
                f"waiting for {feeder.leftover_count:,} orders of the earlier launch. A worker still holds them, until "
                "it ends or its lease expires.",
            )
        if environment.trajectories_monitor is None or environment.tasks_monitor is None:
            return None
        if environment.worker_slots and not environment.ready_workers:
            return await self._wait_for_engines()
        self._reading_clock.update(environment.trajectories_monitor.latest_stats)
        orders = environment.tasks_monitor.latest_stats.backlog_records
        if orders > environment.in_flight and (wait := self._wait_for_reader()) is not None:
            return wait
        if orders == 0 and feeder.is_paced:
            return self._wait_for_version(feeder.trainer_progress, feeder.rollouts_sent)
        if orders and not environment.worker_slots and not await self._was_order_taken():
            return self._wait_for_workers(orders)
        if environment.is_fed_externally and not orders and not environment.in_flight:
            url = environment.tasks_monitor.url
            return Wait(WaitedFor.ORDERS, f"waiting for orders on {url} (queue.tasks), from another program.")
        return None

    def _note(self, found: Wait | None, now: float) -> None:
        """Report a wait that has lasted a moment, repeat the report each minute, and report when the wait ends."""
        if found is None or self._pending is None or found.waited_for is not self._pending.waited_for:
            if self._environment.wait is not None and not self._state.stopping_early:
                self._report(f"continues after {now - self._wait_began:.0f} s", "launch continues", is_wait=False)
            self._environment.wait = None
            self._wait_began, self._last_reported = now, -_REPEAT_SECONDS
        self._pending = found
        if found is not None and now - self._wait_began >= _SETTLE_SECONDS:
            self._environment.wait = found
            if now - self._last_reported >= _REPEAT_SECONDS:
                self._last_reported = now
                self._report(found.text, "launch waits", is_wait=True)

    def _report(self, text: str, event: str, *, is_wait: bool) -> None:
        waited_for = None if self._pending is None else self._pending.waited_for.value
        log.info(event, environment=self._environment.name, waited_for=waited_for, text=text)
        self._state.notices.append(Notice(f"{self._environment.name}: {text}", is_wait=is_wait))

    async def _wait_for_engines(self) -> Wait | None:
        urls = self._config.engine.urls
        try:
            api_key = api_key_from_config(self._config)
        except ConfigurationError:
            return None  # a worker ends with this error, and the launch shows it
        problems: list[str] = []

        async def ask(url: str) -> None:
            if (problem := await _engine_problem(url, api_key)) is not None:
                problems.append(problem)

        async with anyio.create_task_group() as task_group:
            for url in urls:
                task_group.start_soon(ask, url)
        if not urls or len(problems) < len(urls):
            return None
        count = "its engine does not answer" if len(urls) == 1 else f"none of its {len(urls)} engines answers"
        return Wait(WaitedFor.ENGINES, f"waiting because {count}: {problems[0]}")

    def _wait_for_reader(self) -> Wait | None:
        assert self._environment.trajectories_monitor is not None
        stats, limits = (
            self._environment.trajectories_monitor.latest_stats,
            self._environment.trajectories_monitor.limits,
        )
        if limits.admits(stats.backlog_bytes, stats.backlog_records):
            return None
        size = (
            decimal(stats.backlog_bytes)
            if stats.backlog_bytes > limits.high_water
            else f"{stats.backlog_records:,} records"
        )
        since = f"{self._reading_clock.last_read:%H:%M}"
        return Wait(
            WaitedFor.TRAINER_READS,
            f"waiting for a trainer: the backlog of {size} has reached its high water of {limits.high_water_text}, and "
            f"no trainer has read and committed any record since {since}. Start a trainer that reads "
            f"{self._environment.trajectories_monitor.url}, or play without a trainer: {self._command('run')}",
        )

    def _wait_for_version(self, progress: TrainerProgress | None, rollouts_sent: int) -> Wait:
        policy, known = self._config.policy, progress or TrainerProgress()
        assert policy.max_staleness is not None
        allowed = (policy.max_staleness + known.version + 1) * policy.batch - known.consumed
        trainer = (
            "a trainer, and no trainer has reported its progress yet (queue.control)"
            if progress is None
            else f"the trainer, which is at version {known.version} and has consumed {known.consumed:,} rollouts"
        )
        return Wait(
            WaitedFor.TRAINER_VERSION,
            f"waiting for {trainer}: policy.max_staleness {policy.max_staleness} and policy.batch {policy.batch} allow "
            f"{allowed:,} rollouts that the trainer has not consumed, and "
            f"{rollouts_sent - known.consumed - known.discarded:,} such rollouts are played. The launch continues when "
            "the trainer publishes its next version.",
        )

    def _wait_for_workers(self, orders: int) -> Wait:
        run = ("--run", str(self._state.directory.path))
        return Wait(
            WaitedFor.WORKERS,
            f"waiting for workers: no worker has taken one of the {orders:,} orders. Start workers: "
            f"{self._command('worker', run)}",
        )

    async def _was_order_taken(self) -> bool:
        """Whether a worker has taken the oldest order; also true if the queue does not answer."""
        assert self._environment.tasks_queue is not None
        try:
            oldest = await self._environment.tasks_queue.peek(limit=1)
        except QueueError:
            return True
        return not oldest or oldest[0].delivered

    def _command(self, name: str, options: Sequence[str] = ()) -> str:
        launch_config = self._environment.launch_config
        overrides = [
            argument for override in launch_config.overrides for argument in ("--set", show_override(override))
        ]
        return shlex.join(["rollout", name, str(launch_config.file), *overrides, *options])


async def _engine_problem(url: str, api_key: str | None) -> str | None:
    """Return a text that says why an engine does not answer; None if it sends any answer."""
    try:
        with anyio.fail_after(_PROBE_TIMEOUT):
            async with HttpxTransport(api_key) as transport:
                await transport.get(f"{url}/v1/models")
    except TimeoutError:
        return f"{url} did not answer within {_PROBE_TIMEOUT:g} s."
    except (EngineUnreachable, EngineUnavailable) as error:
        return str(error)
    except EngineError:
        return None
    return None
