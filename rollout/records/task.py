"""One thing to solve: an environment or a file names it, an order carries it to a worker, a record to the trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to solve.

    Attributes:
        id: identifies the task; no two tasks of an environment have the same id.
        index: the number of the task in the list of all tasks, from 0 on.
        seed: makes the task reproducible.
        data: what the environment needs to know of the task; it is JSON-like, and the trajectory contains it too.
    """

    id: str
    index: int
    seed: int
    data: Mapping[str, Any] = field(default_factory=dict)
