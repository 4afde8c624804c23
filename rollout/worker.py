"""A worker: leases orders, plays each as one rollout, and settles an order once its finished record is accepted.

One failed rollout never ends another one. Failures of the infrastructure (the engine is gone, the disk is full) are
counted: so many in a row end the worker with that error, before it burns every task.
"""

from collections import Counter
from dataclasses import dataclass, field

import anyio
import structlog

from rollout.attempt import Attempt, RunFacts
from rollout.config import Config
from rollout.environments.base import Environment
from rollout.errors import RolloutError
from rollout.session import Policy
from rollout.tasks import TaskError, decode_order
from transports import Delivery, Queue

log = structlog.get_logger()

_POLL = 0.2


@dataclass(slots=True)
class WorkerCounters:
    """What a worker did so far."""

    in_flight: int = 0
    finished: int = 0
    status: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    images: int = 0
    queue_bytes: int = 0
    prompt_sources: Counter[str] = field(default_factory=Counter)

    def add(self, attempt: Attempt) -> None:
        """Count an attempt that has ended."""
        if attempt.stream.final is not None:
            self.finished += 1
            self.status[attempt.stream.final.status.value] += 1
        self.turns += attempt.session.turns_done
        self.images += attempt.session.images_seen
        self.queue_bytes += attempt.stream.bytes
        self.prompt_sources.update(attempt.session.prompt_sources)


class Worker:
    """Plays rollouts of one environment with one policy."""

    def __init__(self, config: Config, policy: Policy, run: str, tasks: Queue, trajectories: Queue) -> None:
        self.counters = WorkerCounters()
        self._config = config
        self._policy = policy
        self._tasks = tasks
        self._trajectories = trajectories
        self._failures = 0
        self._facts = RunFacts(
            run=run,
            environment=config.environment.__name__,
            model=config.model.name,
            policy_version=config.policy.version,
            config_digest=config.digest(),
        )

    async def run(self) -> None:
        """Play until cancelled; rollouts in flight then end as abandoned.

        Raises:
            RolloutError, QueueError: the infrastructure failed too often in a row.
        """
        slots = anyio.Semaphore(self._config.worker.concurrency)
        async with anyio.create_task_group() as group:
            while True:
                await slots.acquire()
                await self._trajectories.admit()
                while (delivery := await self._tasks.receive(timeout=_POLL)) is None:
                    pass
                group.start_soon(self._settle, delivery, slots)

    async def _settle(self, delivery: Delivery, slots: anyio.Semaphore) -> None:
        try:
            attempt = Attempt(decode_order(delivery.frames), 1, self._policy, self._facts, self._trajectories)
        except TaskError as error:
            log.error("order refused", tag=delivery.tag, error=str(error))
            await delivery.reject(str(error))
        else:
            await self._play(attempt)
            await delivery.ack()
        finally:
            slots.release()

    async def _play(self, attempt: Attempt) -> None:
        self.counters.in_flight += 1
        try:
            await attempt.play(self._environment, timeout=self._config.worker.rollout_timeout)
        finally:
            self.counters.in_flight -= 1
            self.counters.add(attempt)
        blamed = attempt.error if isinstance(attempt.error, RolloutError) and attempt.error.infrastructure else None
        self._failures = self._failures + 1 if blamed else 0
        if blamed and self._failures >= self._config.worker.halt_after:
            raise blamed

    def _environment(self) -> Environment:
        return self._config.environment(self._config.settings)
