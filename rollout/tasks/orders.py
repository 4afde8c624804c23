"""Makes, encodes and decodes orders: the records on the tasks queue, one for each rollout of each task."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

from rollout.environments.base import Environment, TaskSettings
from rollout.errors import ConfigurationError, RolloutError, describe_user_error
from rollout.records.bounds import MAX_GROUP_SIZE
from rollout.records.task import Task
from rollout.records.wrong_types import describe_wrong_type, show_value
from rollout.tasks.sources import iter_tasks
from rollout.texts import is_well_formed
from transports import Frames
from transports.codec import decode, encode
from transports.errors import CodecError


class OrderError(RolloutError):
    """A record on the tasks queue is not an order, or an order cannot be sent."""


@dataclass(frozen=True, slots=True)
class RolloutOrder:
    """An order to play one rollout.

    Attributes:
        task: the task to play.
        sample: the number of the rollout in its group; the first rollout has the number 0.
        group_size: the number of rollouts in the group.
        policy_version: the trainer's policy version when the order was sent; None if it was unknown.
    """

    task: Task
    sample: int
    group_size: int
    policy_version: str | None = None

    @property
    def rollout_id(self) -> str:
        """The id of the rollout, which consists of the task's id and the rollout's number in its group."""
        return f"{self.task.id}.{self.sample}"

    @property
    def group_rollout_ids(self) -> list[str]:
        """The ids of all rollouts of the task, including this rollout."""
        return [f"{self.task.id}.{sample}" for sample in range(self.group_size)]


class TasksUnusable(ConfigurationError):
    """The tasks of an environment cannot be listed, or are not valid."""


def iter_orders(new_environment: Callable[[], Environment], settings: TaskSettings) -> Iterator[RolloutOrder]:
    """Yield an order for every rollout of a run, group by group.

    Raises:
        TasksUnusable: the tasks of the environment cannot be listed, or are not valid.
        TaskSourceError: the source of the tasks cannot be read.
    """
    seen_ids: set[str] = set()
    for task in _iter_tasks(new_environment, settings):
        if task.id in seen_ids:
            raise TasksUnusable(f"tasks() returned two tasks with the id {task.id!r}. Give each task a different id.")
        seen_ids.add(task.id)
        for sample in range(settings.group_size):
            yield RolloutOrder(task, sample, settings.group_size)


def _iter_tasks(new_environment: Callable[[], Environment], settings: TaskSettings) -> Iterator[Task]:
    """Yield checked tasks. Every exception of the environment is raised as TasksUnusable, even SystemExit."""
    tasks: Iterator[Any] | None = None
    while True:
        try:
            if tasks is None:
                tasks = iter_tasks(new_environment(), settings)
            task = next(tasks)
            _check_task(task)
        except StopIteration:
            return
        except (RolloutError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise TasksUnusable(f"the tasks cannot be listed: {describe_user_error(error)}") from error
        yield task


def _check_task(task: object) -> None:
    """Raise TasksUnusable if the object is not a task, or if a field of the task is not valid."""
    task_id: object = task.id if isinstance(task, Task) else None
    if not isinstance(task, Task) or not isinstance(task_id, str) or not task_id:
        raise TasksUnusable(f"tasks() returned {show_value(task)}; expected a rollout.Task whose id is a string.")
    if not is_well_formed(task_id):
        raise TasksUnusable(
            f"tasks() returned a task with the id {task_id!r}, which has a lone surrogate. Files cannot contain "
            "it; use another id."
        )
    numbers: tuple[object, ...] = (task.index, task.seed)
    if not all(isinstance(number, SupportsIndex) for number in numbers):
        raise TasksUnusable(f"tasks() returned the task {task_id!r}; its index and its seed must be whole numbers.")
    data: object = task.data
    if not isinstance(data, Mapping):
        raise TasksUnusable(
            f"tasks() returned the task {task_id!r}; its data is {describe_wrong_type(data)}, but it must be a mapping."
        )
    try:
        encode(dict(data), lone_surrogates=False)
    except CodecError as error:
        raise TasksUnusable(f"tasks() returned the task {task_id!r}; its data cannot be recorded: {error}") from None


def encode_order(order: RolloutOrder) -> Frames:
    """Encode an order for the tasks queue. Raises OrderError if the data of its task cannot be encoded."""
    task = order.task
    wire = {
        "task": {"id": task.id, "index": task.index, "seed": task.seed, "data": dict(task.data)},
        "sample": order.sample,
        "group_size": order.group_size,
        "policy_version": order.policy_version,
    }
    try:
        return encode(wire, lone_surrogates=False)
    except CodecError as error:
        raise OrderError(f"task {task.id}: its data cannot be sent: {error}") from error


def decode_order(frames: Frames) -> RolloutOrder:
    """Decode an order. Raises OrderError if the record is not an order."""
    try:
        wire: Any = decode(frames, lone_surrogates=False)
        fields = {key: wire["task"][key] for key in ("id", "index", "seed", "data")}
        if [type(value) for value in fields.values()] != [str, int, int, dict]:
            raise ValueError("the task's id must be a string, its index and seed integers, and its data a map")
        version, sample, group_size = wire.get("policy_version"), wire["sample"], wire["group_size"]
        if (type(sample), type(group_size)) != (int, int) or not 0 <= sample < group_size <= MAX_GROUP_SIZE:
            raise ValueError(
                f"sample is {sample!r} and group_size is {group_size!r}; expected integers with "
                f"0 <= sample < group_size <= {MAX_GROUP_SIZE}"
            )
        return RolloutOrder(Task(**fields), sample, group_size, None if version is None else str(version))
    except (CodecError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise OrderError(f"the record is not an order for a rollout: {error!r}") from error
