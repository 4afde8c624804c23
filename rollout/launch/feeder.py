"""The orchestrator's side of the tasks queue: which orders are sent, and when.

Rollouts are paced, not discarded: a group is sent only when its rollouts can still be trained on in time. The claims of
the run say what is done, so that a run which is continued sends what is not, and nothing else.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

import anyio
import anyio.to_thread
import structlog

from rollout.config.sections import PolicyConfig
from rollout.errors import ConfigurationError, RolloutError
from rollout.records.progress import Progress
from rollout.rundir.claims import Claims
from rollout.tasks.orders import RolloutOrder, encode_order
from transports import Queue

log = structlog.get_logger()

_LOOK = 0.1


class OrdersLeft(RolloutError):
    """The tasks queue holds orders that this launch did not send."""


def capacity(policy: PolicyConfig, progress: Progress, sent: int) -> int | None:
    """How many more rollouts may be sent now; None: any number.

    In flight ≤ (max_staleness + version + 1) × batch − consumed, where those in flight were sent and are neither
    consumed nor discarded. So a rollout is consumed at most max_staleness versions after the one that it began with,
    and one that failed makes room for another.
    """
    if policy.max_staleness is None:
        return None
    return (policy.max_staleness + progress.version + 1) * policy.batch - (sent - progress.discarded)


class Feeder:
    """Sends the orders of one environment. `sent` and `finished` count rollouts, those of earlier launches too."""

    def __init__(self, orders: Iterable[RolloutOrder], tasks: Queue, claims: Claims, policy: PolicyConfig) -> None:
        self.progress: Progress | None = None
        """The trainer's, once it was heard of."""
        self.sent = 0
        self.done = False
        """Whether everything was sent, and everything that was sent is finished."""
        self._orders = orders
        self._tasks = tasks
        self._claims = claims
        self._policy = policy

    async def require_empty(self) -> None:
        """A queue that another run feeds would have its orders played here, and taken away."""
        if left := (await self._tasks.stats()).backlog_records:
            raise OrdersLeft(
                f"{self._tasks.url} (queue.tasks) holds {left} orders of another run. Go on with that run by --resume, "
                "empty the queue with `rollout queue drain --lease record`, or name another queue."
            )

    async def clear(self, patience: float) -> None:
        """Take back what an earlier launch had sent: what of it is not finished is sent again, in its turn.

        Workers that live, because others started them, have so many seconds to finish what they hold of it.
        """
        with anyio.move_on_after(patience):
            while (await self._tasks.stats()).backlog_records:
                if (left := await self._tasks.receive(timeout=_LOOK)) is not None:
                    await left.ack()
            return
        raise OrdersLeft(
            f"{self._tasks.url} (queue.tasks): a worker has held orders of the earlier launch for another "
            f"{patience:g} s. Does one run on another machine? Let it finish, or end it, and resume again."
        )

    async def feed(self, window: int) -> None:
        """Send every order that is not done, group by group; keep no more than about `window` of them waiting."""
        for task, group in groupby(self._orders, key=lambda order: order.task.id):
            orders = list(group)
            self._check_fits(len(orders), task)
            waiting = await anyio.to_thread.run_sync(self._not_done, orders)
            await self._may_send(len(orders) if waiting else 0, window)
            self.sent += len(orders)
            version = None if self.progress is None else str(self.progress.version)
            for order in waiting:
                told = replace(order, policy_version=version)
                await self._tasks.put(encode_order(told), key=order.rollout, tag=order.rollout)
        await self._all_settled()
        self.done = True

    async def _all_settled(self) -> None:
        while True:
            if not (await self._tasks.stats()).backlog_records:
                return
            await anyio.sleep(_LOOK)

    def _not_done(self, orders: list[RolloutOrder]) -> list[RolloutOrder]:
        return [order for order in orders if not self._claims.is_done(order.rollout)]

    async def _may_send(self, rollouts: int, window: int) -> None:
        while rollouts:
            room = capacity(self._policy, self.progress or Progress(), self.sent)
            if (room is None or room >= rollouts) and (await self._tasks.stats()).backlog_records < window:
                return
            await anyio.sleep(_LOOK)

    def _check_fits(self, rollouts: int, task: str) -> None:
        if self._policy.max_staleness is not None and rollouts > self._policy.batch:
            raise ConfigurationError(
                f"the group of task {task} has {rollouts} rollouts and policy.batch is {self._policy.batch}: it could "
                "never be sent. Set policy.batch to what a training step takes, at least a whole group."
            )
