"""Reads the trajectories of a run as rows of a table; filters, sorts and summarizes the rows."""

import operator
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rollout.errors import ConfigurationError
from rollout.records.endings import RolloutLimit
from rollout.records.prompt_counts import is_later_render
from rollout.rundir.claims import Claims
from rollout.rundir.directory import RunDirectory
from rollout.trainer import Trajectory
from rollout.trainer.reading.archive import open_archive

_CONDITION_PATTERN = re.compile(r"\s*(\w+)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class InspectError(ConfigurationError):
    """A condition, a column or a file name of `rollout inspect` is not valid."""


@dataclass(frozen=True, slots=True)
class Row:
    """The columns of a trajectory in the table.

    Attributes:
        rollout: the rollout's id.
        environment: the name of its environment.
        group: the id of its task.
        attempt: the number of the attempt.
        status: whether it has a score; `unfinished` if it has no finished record.
        limit: which limit stopped it; empty if none did.
        reward: its reward; None if it has none.
        turns: how many turns it has.
        images: how many different images it has; an image in two messages counts once.
        tokens: how many tokens all messages have, each message counted once, with the images expanded.
        sampled: how many of these tokens the policy sampled.
        rendered: how many turns after the first have a prompt that was rendered whole, and not bridged.
        versions: the versions of the weights that sampled it, oldest first.
        seconds: how long the attempt took.
        error: the type and the message of its error; empty if it has none.
    """

    rollout: str
    environment: str
    group: str
    attempt: int
    status: str
    limit: str
    reward: float | None
    turns: int
    images: int
    tokens: int
    sampled: int
    rendered: int
    versions: str
    seconds: float
    error: str


COLUMNS = tuple(entry.name for entry in fields(Row))
NUMERIC_COLUMNS = frozenset(entry.name for entry in fields(Row) if entry.type in (int, float, float | None))


def row_of(trajectory: Trajectory) -> Row:
    """Return the row of a trajectory."""
    runs = [node.run for node in trajectory.nodes]
    slots = [slot for run in runs for slot in run.images]
    spans = [span.version for step in trajectory.steps for span in step.versions]
    error = trajectory.error or {}
    is_unfinished = error.get("type") == "Unfinished"
    return Row(
        rollout=trajectory.rollout,
        environment=trajectory.environment,
        group=trajectory.group,
        attempt=trajectory.attempt,
        status="unfinished" if is_unfinished else trajectory.status.value,
        limit="" if trajectory.limit is RolloutLimit.NONE else trajectory.limit.value,
        reward=trajectory.reward,
        turns=len(trajectory.steps),
        images=len({slot.hash for slot in slots}),
        tokens=sum(len(run.ids) for run in runs) + sum(slot.length - 1 for slot in slots),
        sampled=sum(len(run.ids) - run.sampled_from for run in runs),
        rendered=sum(is_later_render(step.prompt_source) for step in trajectory.steps),
        versions=" ".join(dict.fromkeys(spans)),
        seconds=round(trajectory.seconds, 3),
        error=f"{error.get('type')}: {error.get('message')}" if error else "",
    )


Condition = Callable[[Row], bool]


def parse_condition(text: str) -> Condition:
    """Return a function that tests a row against a `--filter`, such as `status=failed`, `reward<0.5` or `error~Time`.

    Raises:
        InspectError: the text is not a condition, or there is no such column.
    """
    match = _CONDITION_PATTERN.fullmatch(text)
    if match is None:
        raise InspectError(f"--filter {text!r}: expected a column, one of = != < <= > >= ~, and a value.")
    column, sign, value = match.groups()
    _require_column("--filter", column)
    if sign == "~":
        return lambda row: value in str(getattr(row, column))
    compare = _OPERATORS[sign]
    if column in NUMERIC_COLUMNS:
        try:
            number = float(value)
        except ValueError:
            raise InspectError(
                f"--filter {text!r}: the column {column} has numbers, but {value!r} is not a number."
            ) from None
        # A rollout without a reward never matches a condition on the reward.
        return lambda row: getattr(row, column) is not None and compare(getattr(row, column), number)
    return lambda row: compare(getattr(row, column), value)


async def read_trajectories(directory: Path, conditions: Sequence[Condition]) -> AsyncIterator[Trajectory]:
    """Yield the trajectories of a run that match all conditions."""
    async with open_archive(directory) as reader:
        async for trajectory in reader:
            row = row_of(trajectory)
            if all(matches(row) for matches in conditions):
                yield trajectory


async def read_rows(directory: Path, conditions: Sequence[Condition]) -> list[Row]:
    """Return the rows of the trajectories that match all conditions."""
    return [row_of(trajectory) async for trajectory in read_trajectories(directory, conditions)]


def find_traceback(directory: Path, trajectory: Trajectory) -> str | None:
    """Return the traceback of the error that ended this attempt, or None if the run's directory has none."""
    claims_directory = RunDirectory(directory).claims_path(trajectory.environment)
    if not claims_directory.is_dir():
        return None
    outcome = Claims(claims_directory).outcome(trajectory.rollout)
    return outcome.traceback if outcome is not None and outcome.attempt == trajectory.attempt else None


def sort_rows(rows: Iterable[Row], by: str) -> list[Row]:
    """Return the rows sorted by a column, descending if `by` begins with a minus; rows without a value come last.

    Raises:
        InspectError: there is no such column.
    """
    column = by.removeprefix("-")
    _require_column("--sort", column)
    all_rows = list(rows)
    known = [row for row in all_rows if getattr(row, column) is not None]
    unknown = [row for row in all_rows if getattr(row, column) is None]
    return sorted(known, key=operator.attrgetter(column), reverse=by.startswith("-")) + unknown


def summarize_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the number of rows by status, their mean reward, and their totals."""
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


def _require_column(option: str, name: str) -> None:
    if name not in COLUMNS:
        raise InspectError(f"{option}: there is no column {name!r}; the columns are {', '.join(COLUMNS)}.")
