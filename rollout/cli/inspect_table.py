"""Prints the table of `rollout inspect`: the columns that fit a terminal, or tab-separated lines for programs."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rollout.cli.inspect_rows import COLUMNS, NUMERIC_COLUMNS, Row, summarize_rows
from rollout.texts import escape_controls

_SHOWN_COLUMNS = (
    "rollout",
    "status",
    "limit",
    "reward",
    "turns",
    "images",
    "tokens",
    "sampled",
    "rendered",
    "versions",
    "seconds",
    "error",
)
_LEAST_IMPORTANT_FIRST = ("seconds", "versions", "limit", "sampled", "rendered", "images", "tokens", "turns")
"""The columns that a narrow terminal leaves out, in this order."""
_OPTIONAL_COLUMNS = ("limit", "rendered", "error")
"""The columns that are left out if they are empty or 0 in every row."""
_GAP = 2
_ERROR_WIDTHS = (30, 60)
"""The lowest and the highest width of an error, in characters. Other columns are left out first."""
_COLORS = {"ok": "green", "unscored": "yellow", "failed": "red", "abandoned": "red", "unfinished": "red"}


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Print a table that fits the console, and a summary below it."""
    widths, left_out = _choose_columns(rows, console.width)
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, _GAP, 0, 0))
    for name, width in widths.items():
        is_name = name in ("rollout", "environment")  # people copy names, so they are never cut
        table.add_column(
            name,
            justify="right" if name in NUMERIC_COLUMNS else "left",
            no_wrap=not is_name,
            overflow="fold" if is_name else "ellipsis",
            max_width=width,
        )
    for row in rows:
        color = _COLORS[row.status]
        cells = {name: escape(_format_cell(name, getattr(row, name))) for name in widths}
        table.add_row(*(f"[{color}]{cell}[/{color}]" if name == "status" else cell for name, cell in cells.items()))
    console.print(table, highlight=False)
    console.print(summary_line(rows), highlight=False)
    if left_out:
        names = ", ".join(left_out)
        hint = f"Not shown: {names}. A wider terminal, a pipe or --json shows them; --sort and --filter accept them."
        console.print(hint, style="dim", highlight=False)


def write_lines(rows: Sequence[Row]) -> None:
    """Write the rows with all columns, separated by tabs, and the summary as the last line."""
    for cells in (COLUMNS, *([_plain_cell(getattr(row, name)) for name in COLUMNS] for row in rows)):
        sys.stdout.write("\t".join(cells) + "\n")
    sys.stdout.write(summary_line(rows) + "\n")


def summary_line(rows: Sequence[Row]) -> str:
    """Return one line with the number of rollouts, how they ended, and their totals."""
    summary = summarize_rows(rows)
    status = ", ".join(f"{count} {name}" for name, count in summary["status"].items()) or "none"
    reward = "" if summary["reward_mean"] is None else f"; reward {summary['reward_mean']:.3f}"
    counts = f"{summary['turns']:,} turns, {summary['images']:,} different images, {summary['tokens']:,} tokens"
    return f"{summary['trajectories']:,} trajectories ({status}){reward}; {counts}"


def _choose_columns(rows: Sequence[Row], width: int) -> tuple[dict[str, int], list[str]]:
    """Return the width of each column that fits, and the names of the less important columns that do not fit."""
    names = [
        name for name in _SHOWN_COLUMNS if name not in _OPTIONAL_COLUMNS or any(getattr(row, name) for row in rows)
    ]
    if len({row.environment for row in rows}) > 1:
        names.insert(1, "environment")
    widths = {
        name: max(map(cell_len, (name, *(_format_cell(name, getattr(row, name)) for row in rows)))) for name in names
    }
    least_error, most_error = _ERROR_WIDTHS
    needed = {**widths, "error": min(widths["error"], least_error)} if "error" in widths else dict(widths)
    droppable = (name for name in _LEAST_IMPORTANT_FIRST if name in widths)
    while _total_width(needed) > width and (name := next(droppable, None)) is not None:
        del needed[name]
    if "error" in needed:
        room = width - _total_width({**needed, "error": 0})
        needed["error"] = max(least_error, min(widths["error"], most_error, room))
    return needed, [name for name in names if name not in needed]


def _total_width(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _format_cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "reward":
        return f"{value:.3f}"
    return f"{value:,}" if name in NUMERIC_COLUMNS else _one_line(str(value))


def _plain_cell(value: Any) -> str:
    return "-" if value is None else _one_line(str(value))


def _one_line(text: str) -> str:
    return escape_controls(" ".join(text.split()))
