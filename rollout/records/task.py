"""One thing to solve: an environment or a file names it, an order carries it to a worker, a record to the trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to solve. `data` is JSON-like and travels with the trajectory; `seed` makes the task reproducible."""

    id: str
    index: int
    seed: int
    data: Mapping[str, Any] = field(default_factory=dict)
