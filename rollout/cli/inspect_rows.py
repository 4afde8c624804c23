"""A trajectory as a row of a table, and what to show of many of them: conditions and order."""

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rollout.errors import ConfigurationError
from rollout.trainer import Trajectory

_CONDITION = re.compile(r"\s*(\w+)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class InspectError(ConfigurationError):
    """A condition, an order, a rollout's name or a file's name that `rollout inspect` cannot use."""


@dataclass(frozen=True, slots=True)
class Row:
    """What can be shown, compared and sorted by."""

    rollout: str
    environment: str
    group: str
    attempt: int
    status: str
    reward: float | None
    turns: int
    images: int
    """How often an image stands in the conversations; one that is introduced twice counts twice."""
    tokens: int
    """Of all messages, each once, with the images expanded."""
    sampled: int
    versions: str
    """Of the weights that sampled it, oldest first."""
    seconds: float
    error: str


COLUMNS = tuple(entry.name for entry in fields(Row))


def row_of(trajectory: Trajectory) -> Row:
    runs = [node.run for node in trajectory.nodes]
    slots = [slot for run in runs for slot in run.images]
    spans = [span.version for step in trajectory.steps for span in step.versions]
    error = trajectory.error or {}
    unfinished = error.get("type") == "Unfinished"
    return Row(
        rollout=trajectory.rollout,
        environment=trajectory.environment,
        group=trajectory.group,
        attempt=trajectory.attempt,
        status="unfinished" if unfinished else trajectory.status.value,
        reward=trajectory.reward,
        turns=len(trajectory.steps),
        images=len(slots),
        tokens=sum(len(run.ids) for run in runs) + sum(slot.length - 1 for slot in slots),
        sampled=sum(len(run.ids) - run.sampled_from for run in runs),
        versions=" ".join(dict.fromkeys(spans)),
        seconds=round(trajectory.seconds, 3),
        error=f"{error.get('type')}: {error.get('message')}" if error else "",
    )


Condition = Callable[[Row], bool]


def condition(text: str) -> Condition:
    """What `--filter` takes: a column, an operator and a value, such as `status=failed`, `reward<0.5` or `error~Time`.

    Raises:
        InspectError: it is none.
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise InspectError(f"--filter {text!r}: expected a column, one of = != < <= > >= ~, and a value.")
    column, sign, value = found.groups()
    _require_column("--filter", column)
    if sign == "~":
        return lambda row: value in str(getattr(row, column))
    compare = _COMPARE[sign]
    if column in _NUMBERS:
        try:
            number = float(value)
        except ValueError:
            raise InspectError(f"--filter {text!r}: {column} is compared with a number, not {value!r}.") from None
        # A rollout without a reward is neither above nor below any.
        return lambda row: getattr(row, column) is not None and compare(getattr(row, column), number)
    return lambda row: compare(getattr(row, column), value)


def ordered(rows: Iterable[Row], by: str) -> list[Row]:
    """Sorted by a column, downwards if a minus stands before it; what has no value comes last.

    Raises:
        InspectError: there is no such column.
    """
    column = by.removeprefix("-")
    _require_column("--sort", column)
    found = list(rows)
    known = [row for row in found if getattr(row, column) is not None]
    unknown = [row for row in found if getattr(row, column) is None]
    return sorted(known, key=operator.attrgetter(column), reverse=by.startswith("-")) + unknown


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    """What a summary says of the rows that are shown."""
    rewards = [row.reward for row in rows if row.reward is not None]
    status: dict[str, int] = {}
    for row in rows:
        status[row.status] = status.get(row.status, 0) + 1
    return {
        "trajectories": len(rows),
        "status": dict(sorted(status.items())),
        "reward_mean": sum(rewards) / len(rewards) if rewards else None,
        "turns": sum(row.turns for row in rows),
        "images": sum(row.images for row in rows),
        "tokens": sum(row.tokens for row in rows),
    }


_NUMBERS = frozenset(entry.name for entry in fields(Row) if entry.type in (int, float, float | None))


def _require_column(option: str, name: str) -> None:
    if name not in COLUMNS:
        raise InspectError(f"{option}: there is no column {name!r}; there are {', '.join(COLUMNS)}.")
