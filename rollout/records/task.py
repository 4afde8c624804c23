"""The task: an environment or a file defines it, a worker plays it, and the trainer gets it with the trajectory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to solve.

    Attributes:
        id: the id of the task, unique among all tasks of its environment.
        index: the number of the task in the list of all tasks, from 0 on.
        seed: the seed for the environment's random numbers; the same seed plays the task in the same way.
        data: the environment's data about the task, as plain JSON-like data; may be empty. The trajectory contains this
            data, too.
    """

    id: str
    index: int
    seed: int
    data: Mapping[str, Any] = field(default_factory=dict)
