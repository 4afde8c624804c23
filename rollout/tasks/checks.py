"""Checks the first tasks of a run before they are played, with `check_task` of the environment."""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from rollout.environments.base import Environment, TaskSettings, describe_method
from rollout.errors import ConfigurationError, describe_user_error
from rollout.records.task import Task
from rollout.tasks.orders import RolloutOrder
from transports.redaction import hide_passwords

TASKS_BEFORE_A_RUN = 100
"""How many tasks a run or a launch checks before it plays."""
TASKS_OF_DOCTOR = 1000
"""How many tasks `rollout doctor` checks."""


class TaskRefused(ConfigurationError):
    """`check_task` of an environment found something that a task lacks, or failed."""


def check_tasks(
    new_environment: Callable[[], Environment], settings: TaskSettings, orders: Iterable[RolloutOrder], limit: int
) -> None:
    """Check the tasks of these orders, up to a limit.

    Raises:
        TaskRefused: a task lacks something. The message names the task and its row.
    """
    environment = new_environment()
    for order in islice((order for order in orders if order.sample == 0), limit):
        try:
            environment.check_task(order.task)
        except ConfigurationError as error:
            raise TaskRefused(f"{_name(order.task, settings)}: {error}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            method = describe_method(environment, "check_task")
            raise TaskRefused(
                f"{method} failed for {_name(order.task, settings)}: {describe_user_error(error)}"
            ) from error


def _name(task: Task, settings: TaskSettings) -> str:
    """Return the id of a task and the row of the source that it comes from."""
    if settings.source is None:
        return f"task {task.id}"
    source = settings.source
    name = hide_passwords(source) if "://" in source else Path(source).name
    return f"task {task.id} (row {task.index + 1:,} of {name})"
