"""`rollout inspect`: what a run recorded, as a table, as one conversation, or as a file for other tools."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rollout.cli.options import Debug, Json
from rollout.cli.output import write_json

if TYPE_CHECKING:
    from rollout.cli.inspect_rows import Condition, Row
    from rollout.trainer import Trajectory

_SHOWN_COLUMNS = ("rollout", "status", "reward", "turns", "images", "tokens", "sampled", "versions", "seconds", "error")
_NUMERIC_COLUMNS = frozenset(("reward", "turns", "images", "tokens", "sampled", "seconds"))
_MAX_CELL_LENGTH = 60
_COLORS = {"ok": "green", "truncated": "yellow", "failed": "red", "abandoned": "red", "unfinished": "red"}


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run's directory.", show_default=False)],
    rollout: Annotated[
        str | None, typer.Argument(metavar="[ROLLOUT]", help="Show this one as a conversation.", show_default=False)
    ] = None,
    sort: Annotated[str, typer.Option(help="Column to sort by; -COLUMN sorts downwards.")] = "rollout",
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Show only what meets it: status=failed, reward<0.5, error~Timeout."),
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Write to this .jsonl or .parquet file instead.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a run recorded: all its trajectories as a table, or one of them as a conversation.

    Columns: rollout, environment, group, attempt, status, reward, turns, images, tokens, sampled, versions, seconds and
    error.
    """
    import anyio

    from rollout.cli.inspect_rows import find_trajectory, parse_condition, read_rows, sort_rows, summarize_rows

    conditions = [parse_condition(text) for text in filters or []]
    sort_rows([], sort)  # an unknown column is refused before the run is read
    if rollout is not None:
        _print_trajectory(anyio.run(find_trajectory, directory, rollout), as_json=as_json)
    elif export is not None:
        count = anyio.run(_export, directory, conditions, export)
        sys.stderr.write(f"{count} trajectories in {export}\n")
    else:
        rows = sort_rows(anyio.run(read_rows, directory, conditions), sort)
        if as_json:
            write_json({"run_dir": str(directory), **summarize_rows(rows), "rows": [asdict(row) for row in rows]})
        else:
            _print_table(rows, Console())


async def _export(directory: Path, conditions: "Sequence[Condition]", path: Path) -> int:
    from rollout.cli.inspect_export import export
    from rollout.cli.inspect_rows import read_trajectories

    return await export(read_trajectories(directory, conditions), path)


def _print_trajectory(trajectory: "Trajectory", *, as_json: bool) -> None:
    if as_json:
        from rollout.cli.inspect_export import trajectory_document

        write_json(trajectory_document(trajectory))
        return
    from rollout.cli.inspect_conversation import conversation_lines

    for line in conversation_lines(trajectory):
        sys.stdout.write(f"{line}\n")


def _print_table(rows: "Sequence[Row]", console: Console) -> None:
    from rollout.cli.inspect_rows import summarize_rows

    columns = [name for name in _SHOWN_COLUMNS if name != "error" or any(row.error for row in rows)]
    if len({row.environment for row in rows}) > 1:
        columns.insert(1, "environment")
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in _NUMERIC_COLUMNS else "left", no_wrap=True)
    for row in rows:
        color = _COLORS[row.status]
        table.add_row(*(_format_cell(name, getattr(row, name), color) for name in columns))
    console.print(table, highlight=False)
    summary = summarize_rows(rows)
    status = ", ".join(f"{count} {name}" for name, count in summary["status"].items()) or "none"
    reward = "" if summary["reward_mean"] is None else f"; reward {summary['reward_mean']:.3f}"
    counts = f"{summary['turns']:,} turns, {summary['images']:,} images, {summary['tokens']:,} tokens"
    console.print(f"{summary['trajectories']:,} trajectories ({status}){reward}; {counts}", highlight=False)


def _format_cell(name: str, value: Any, color: str) -> str:
    if value is None:
        return "-"
    if name == "status":
        return f"[{color}]{value}[/{color}]"
    if name == "reward":
        return f"{value:.3f}"
    return f"{value:,}" if name in _NUMERIC_COLUMNS else escape(_shorten(str(value)))


def _shorten(text: str) -> str:
    """Return one line that leaves room for the other columns; `rollout inspect RUN_DIR ROLLOUT` shows all of it."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_CELL_LENGTH else f"{line[: _MAX_CELL_LENGTH - 1]}…"
