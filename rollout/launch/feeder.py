"""Sends the orders of a launch to the tasks queue, no faster than the trainer can use the rollouts.

A group is sent only when the trainer can use its rollouts in time, so no rollout is played for nothing. The claims of
the run say which rollouts are done. A run that is continued sends only the orders of the other rollouts.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

import anyio
import anyio.to_thread
import structlog

from rollout.config.sections import PolicyConfig
from rollout.errors import ConfigurationError, RolloutError
from rollout.records.progress import TrainerProgress
from rollout.rundir.claims import Claims
from rollout.tasks.orders import RolloutOrder, encode_order
from transports import Queue

log = structlog.get_logger()

_POLL_INTERVAL = 0.1


class OrdersLeft(RolloutError):
    """The tasks queue holds orders that this launch did not send."""


def remaining_capacity(policy: PolicyConfig, progress: TrainerProgress, rollouts_sent: int) -> int | None:
    """Return the number of rollouts that may still be sent now; None: any number.

    The rule is: in flight ≤ (max_staleness + version + 1) × batch − consumed. A rollout is in flight if it was sent and
    is neither consumed nor discarded. So a rollout is consumed at most max_staleness versions after the version that
    it began with. For each rollout that the trainer discards, another one may be sent.
    """
    if policy.max_staleness is None:
        return None
    return (policy.max_staleness + progress.version + 1) * policy.batch - (rollouts_sent - progress.discarded)


class Feeder:
    """Sends the orders of one environment.

    Attributes:
        trainer_progress: the last progress that the trainer reported; None until its first report.
        rollouts_sent: the number of rollouts that this launch and earlier launches have sent.
        leftover_count: the number of orders of an earlier launch that are still on the queue; 0 when they are removed.
        is_paced: whether the next group waits because `policy.max_staleness` allows no more rollouts now.
        all_finished: whether all orders are sent and acked.
    """

    def __init__(
        self, orders: Iterable[RolloutOrder], tasks_queue: Queue, claims: Claims, policy: PolicyConfig
    ) -> None:
        self.trainer_progress: TrainerProgress | None = None
        self.rollouts_sent = 0
        self.leftover_count = 0
        self.is_paced = False
        self.all_finished = False
        self._orders = orders
        self._tasks_queue = tasks_queue
        self._claims = claims
        self._policy = policy

    async def require_empty(self) -> None:
        """Refuse a queue with orders of another run, because this run would play and remove them.

        Raises:
            OrdersLeft: the queue is not empty.
        """
        if leftover_count := (await self._tasks_queue.stats()).backlog_records:
            raise OrdersLeft(
                f"{self._tasks_queue.url} (queue.tasks) holds {leftover_count} orders of another run. Continue "
                "that run with --resume, empty the queue with `rollout queue drain --lease record`, or name another "
                "queue."
            )

    async def remove_leftovers(self, timeout: float) -> None:
        """Remove the orders that an earlier launch sent. `feed` sends the unfinished ones again.

        Workers that this launch did not start may still hold some of these orders, for at most `timeout` seconds.

        Raises:
            OrdersLeft: a worker still holds some orders after that time.
        """
        with anyio.move_on_after(timeout):
            while leftover_count := (await self._tasks_queue.stats()).backlog_records:
                self.leftover_count = leftover_count
                if (delivery := await self._tasks_queue.receive(timeout=_POLL_INTERVAL)) is not None:
                    await delivery.ack()
            self.leftover_count = 0
            return
        raise OrdersLeft(
            f"{self._tasks_queue.url} (queue.tasks): a worker still holds orders of the earlier launch after "
            f"{timeout:g} s. Wait until that worker ends, or end it, and resume again. It may run on another machine."
        )

    async def feed(self, max_waiting: int) -> None:
        """Send every order that is not done, group by group, and wait until all are acked.

        At most about `max_waiting` orders are on the queue at a time.
        """
        for task_id, group in groupby(self._orders, key=lambda order: order.task.id):
            orders = list(group)
            self._require_sendable_size(len(orders), task_id)
            unfinished = await anyio.to_thread.run_sync(self._unfinished_orders, orders)
            await self._wait_until_sendable(len(orders) if unfinished else 0, max_waiting)
            self.rollouts_sent += len(orders)
            version = None if self.trainer_progress is None else str(self.trainer_progress.version)
            for order in unfinished:
                versioned_order = replace(order, policy_version=version)
                await self._tasks_queue.put(encode_order(versioned_order), key=order.rollout_id, tag=order.rollout_id)
        await self._wait_until_all_acked()
        self.all_finished = True

    async def _wait_until_all_acked(self) -> None:
        while True:
            if not (await self._tasks_queue.stats()).backlog_records:
                return
            await anyio.sleep(_POLL_INTERVAL)

    def _unfinished_orders(self, orders: list[RolloutOrder]) -> list[RolloutOrder]:
        return [order for order in orders if not self._claims.is_done(order.rollout_id)]

    async def _wait_until_sendable(self, rollout_count: int, max_waiting: int) -> None:
        while rollout_count:
            remaining = remaining_capacity(self._policy, self.trainer_progress or TrainerProgress(), self.rollouts_sent)
            self.is_paced = remaining is not None and remaining < rollout_count
            if not self.is_paced and (await self._tasks_queue.stats()).backlog_records < max_waiting:
                return
            await anyio.sleep(_POLL_INTERVAL)

    def _require_sendable_size(self, group_size: int, task_id: str) -> None:
        if self._policy.max_staleness is not None and group_size > self._policy.batch:
            raise ConfigurationError(
                f"the group of task {task_id} has {group_size} rollouts, but policy.batch is only "
                f"{self._policy.batch}, so the group could never be sent. Set policy.batch to the number of rollouts "
                "of a training step, which is at least the size of a group."
            )
