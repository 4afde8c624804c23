"""One thing to solve: it comes from an environment or a file, and goes in an order to a worker, then to the trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to solve.

    Attributes:
        id: identifies the task among all tasks of its environment.
        index: the number of the task in the list of all tasks, from 0 on.
        seed: the seed for the environment's random numbers, so that it plays the task the same way again.
        data: what the environment needs to know about the task, as plain data like JSON; may be empty. The trajectory
            contains it, too.
    """

    id: str
    index: int
    seed: int
    data: Mapping[str, Any] = field(default_factory=dict)
