"""`rollout inspect`: what a run recorded, as a table, as one conversation, or as a file for other tools."""

import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rollout.cli.inspect_conversation import conversation
from rollout.cli.inspect_export import document, export
from rollout.cli.inspect_rows import Condition, InspectError, Row, condition, ordered, row_of, totals
from rollout.cli.printing import write_json
from rollout.trainer import Trajectory
from rollout.trainer.reading.archive import open_archive

_SHOWN = ("rollout", "status", "reward", "turns", "images", "tokens", "sampled", "versions", "seconds", "error")
_NUMERIC = frozenset(("reward", "turns", "images", "tokens", "sampled", "seconds"))
_LONGEST_CELL = 60
_COLORS = {"ok": "green", "truncated": "yellow", "failed": "red", "abandoned": "red", "unfinished": "red"}


def inspect_command(
    directory: Path,
    rollout: str | None,
    *,
    sort: str,
    filters: Sequence[str],
    export_to: Path | None,
    as_json: bool,
) -> None:
    conditions = [condition(text) for text in filters]
    ordered([], sort)  # a column that is not there is refused before the run is read
    if rollout is not None:
        _show_one(anyio.run(_find, directory, rollout), as_json=as_json)
    elif export_to is not None:
        count = anyio.run(_export, directory, conditions, export_to)
        sys.stderr.write(f"{count} trajectories in {export_to}\n")
    else:
        rows = ordered(anyio.run(_rows, directory, conditions), sort)
        if as_json:
            write_json({"run_dir": str(directory), **totals(rows), "rows": [asdict(row) for row in rows]})
        else:
            _show_table(rows, Console())


async def _read(directory: Path, conditions: Sequence[Condition]) -> AsyncIterator[Trajectory]:
    async with open_archive(directory) as reader:
        async for trajectory in reader:
            row = row_of(trajectory)
            if all(holds(row) for holds in conditions):
                yield trajectory


async def _rows(directory: Path, conditions: Sequence[Condition]) -> list[Row]:
    return [row_of(trajectory) async for trajectory in _read(directory, conditions)]


async def _export(directory: Path, conditions: Sequence[Condition], path: Path) -> int:
    return await export(_read(directory, conditions), path)


async def _find(directory: Path, rollout: str) -> Trajectory:
    """The trajectory of that name; where several environments have one, it must be named in full."""
    found = [
        t async for t in _read(directory, ()) if rollout in (t.rollout, f"{t.environment}/{t.rollout}", t.identity)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InspectError(f"{directory} has no rollout {rollout!r}; `rollout inspect {directory}` lists them.")
    raise InspectError(f"several rollouts are named {rollout!r}: {', '.join(t.identity for t in found)}.")


def _show_one(trajectory: Trajectory, *, as_json: bool) -> None:
    if as_json:
        write_json(document(trajectory))
        return
    for line in conversation(trajectory):
        sys.stdout.write(f"{line}\n")


def _show_table(rows: Sequence[Row], console: Console) -> None:
    columns = [name for name in _SHOWN if name != "error" or any(row.error for row in rows)]
    if len({row.environment for row in rows}) > 1:
        columns.insert(1, "environment")
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in _NUMERIC else "left", no_wrap=True)
    for row in rows:
        color = _COLORS[row.status]
        table.add_row(*(_cell(name, getattr(row, name), color) for name in columns))
    console.print(table, highlight=False)
    found = totals(rows)
    status = ", ".join(f"{count} {name}" for name, count in found["status"].items()) or "none"
    reward = "" if found["reward_mean"] is None else f"; reward {found['reward_mean']:.3f}"
    counts = f"{found['turns']:,} turns, {found['images']:,} images, {found['tokens']:,} tokens"
    console.print(f"{found['trajectories']:,} trajectories ({status}){reward}; {counts}", highlight=False)


def _cell(name: str, value: Any, color: str) -> str:
    if value is None:
        return "-"
    if name == "status":
        return f"[{color}]{value}[/{color}]"
    if name == "reward":
        return f"{value:.3f}"
    return f"{value:,}" if name in _NUMERIC else escape(_shortened(str(value)))


def _shortened(text: str) -> str:
    """One line that leaves room for the other columns; the whole of it is shown with the trajectory."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_CELL else f"{line[: _LONGEST_CELL - 1]}…"
