"""Orders: records on the tasks queue, one for each sample of each task."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rollout.environments.base import Environment, TaskSettings
from rollout.errors import ConfigurationError, RolloutError
from rollout.records.task import Task
from rollout.tasks.sources import iter_tasks
from transports import Frames
from transports.codec import decode, encode
from transports.errors import CodecError


class OrderError(RolloutError):
    """A record on the tasks queue that is not an order for a rollout."""


@dataclass(frozen=True, slots=True)
class RolloutOrder:
    """An order to play one rollout.

    Attributes:
        task: the task.
        sample: the number of the rollout in its group, from 0 on.
        group_size: how many rollouts the group has.
        policy_version: the trainer's version of the policy when the order was sent; None if it was not known.
    """

    task: Task
    sample: int
    group_size: int
    policy_version: str | None = None

    @property
    def rollout_id(self) -> str:
        return f"{self.task.id}.{self.sample}"

    @property
    def group_rollout_ids(self) -> list[str]:
        """The ids of all rollouts of the task, this one included."""
        return [f"{self.task.id}.{sample}" for sample in range(self.group_size)]


class TasksUnusable(ConfigurationError):
    """An environment's tasks cannot be listed, or two of them have the same id."""


def iter_orders(new_environment: Callable[[], Environment], settings: TaskSettings) -> Iterator[RolloutOrder]:
    """Yield an order for every rollout of a run, group by group.

    Raises:
        TasksUnusable: the environment's tasks cannot be used.
        TaskSourceError: the source of the tasks cannot be read.
    """
    seen_ids: set[str] = set()
    for task in _iter_tasks(new_environment, settings):
        task_id: object = task.id if isinstance(task, Task) else None
        if not isinstance(task_id, str) or not task_id:
            raise TasksUnusable(f"tasks() gave {str(task)[:200]}; expected a rollout.Task whose id is a text.")
        if task.id in seen_ids:
            raise TasksUnusable(f"tasks() gave two tasks with the id {task.id!r}; each needs an id of its own.")
        seen_ids.add(task.id)
        for sample in range(settings.group_size):
            yield RolloutOrder(task, sample, settings.group_size)


def _iter_tasks(new_environment: Callable[[], Environment], settings: TaskSettings) -> Iterator[Any]:
    try:
        yield from iter_tasks(new_environment(), settings)
    except RolloutError:
        raise
    except Exception as error:
        raise TasksUnusable(f"the tasks cannot be listed: {type(error).__name__}: {error}") from error


def encode_order(order: RolloutOrder) -> Frames:
    task = order.task
    wire = {
        "task": {"id": task.id, "index": task.index, "seed": task.seed, "data": dict(task.data)},
        "sample": order.sample,
        "group_size": order.group_size,
        "policy_version": order.policy_version,
    }
    try:
        return encode(wire)
    except CodecError as error:
        raise OrderError(f"task {task.id}: its data cannot be sent: {error}") from error


def decode_order(frames: Frames) -> RolloutOrder:
    """Decode an order. Raises OrderError if the bytes are anything else."""
    try:
        wire: Any = decode(frames)
        task = Task(**{key: wire["task"][key] for key in ("id", "index", "seed", "data")})
        version = wire.get("policy_version")
        return RolloutOrder(
            task, int(wire["sample"]), int(wire["group_size"]), None if version is None else str(version)
        )
    except (CodecError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise OrderError(f"this is not an order for a rollout: {error!r}") from error
