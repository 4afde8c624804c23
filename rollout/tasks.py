"""Rollouts to be played, as records on the tasks queue: one for each sample of each task."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rollout.environments.base import Environment, Task, TaskSettings
from rollout.errors import RolloutError
from rollout.task_sources import tasks_of
from transports import Frames
from transports.codec import decode, encode
from transports.errors import CodecError


class TaskError(RolloutError):
    """A record on the tasks queue that is not an order for a rollout."""


@dataclass(frozen=True, slots=True)
class RolloutOrder:
    """Play the `sample`-th rollout of a task. `policy_version` is the trainer's when the order was sent, if known."""

    task: Task
    sample: int
    group_size: int
    policy_version: str | None = None

    @property
    def rollout(self) -> str:
        return f"{self.task.id}.{self.sample}"

    @property
    def group(self) -> list[str]:
        """All rollouts of the task, this one included."""
        return [f"{self.task.id}.{sample}" for sample in range(self.group_size)]


def orders(environment: Environment, settings: TaskSettings) -> Iterator[RolloutOrder]:
    """Every rollout of a run, group by group."""
    for task in tasks_of(environment, settings):
        for sample in range(settings.group_size):
            yield RolloutOrder(task, sample, settings.group_size)


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
        raise TaskError(f"task {task.id}: its data cannot be sent: {error}") from error


def decode_order(frames: Frames) -> RolloutOrder:
    """Raises TaskError, whatever the bytes are."""
    try:
        wire: Any = decode(frames)
        task = Task(**{key: wire["task"][key] for key in ("id", "index", "seed", "data")})
        version = wire.get("policy_version")
        return RolloutOrder(
            task, int(wire["sample"]), int(wire["group_size"]), None if version is None else str(version)
        )
    except (CodecError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TaskError(f"this is not an order for a rollout: {error!r}") from error
