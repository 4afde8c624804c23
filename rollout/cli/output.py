"""Prints the results of commands: one JSON object for programs, or text for people."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from rollout.cli.report_stream import report_stream

if TYPE_CHECKING:
    from rollout.config.load import Config
    from rollout.rundir.outcomes import DistinctError

_GAP = "  "
_MAX_ERRORS_SHOWN = 10
"""The limit for the different errors that are shown; the logs contain all of them."""


def write_json(value: Any) -> None:
    """Write a value to stdout as one line of JSON."""
    from rollout.texts import dump_json

    report_stream.has_json = True
    report_stream.write(dump_json(value).decode() + "\n")


def write_json_error(message: str) -> None:
    """Write an error as a JSON object, if `--json` is given and no object was written yet."""
    if report_stream.as_json and not report_stream.has_json:
        write_json({"error": message})


def print_text_or_json(text: str, value: Any, *, as_json: bool) -> None:
    """Print the text for people, or the value as one line of JSON."""
    if as_json:
        write_json(value)
    else:
        report_console().print(text, markup=False, highlight=False, soft_wrap=True)


def warn_of_passwords(configs: "Sequence[Config]") -> None:
    """Print on stderr where a URL contains a password in plain text instead of a variable."""
    places = {place: None for config in configs for place in config.plain_passwords}
    if places:
        sys.stderr.write(
            f"rollout: a password in plain text: {', '.join(places)}. Everyone who can read the file or the command "
            "line can see the password. Put it into an environment variable, and write '${NAME}' in its place, in the "
            "YAML or after --set.\n"
        )


def print_report(
    report: Mapping[str, Any], print_summary: Callable[[Console], None], failure: Exception | None, *, as_json: bool
) -> None:
    """Print the report of a run as JSON, or its summary as text; then raise the failure that ended the run, if any."""
    if as_json:
        write_json({**report, **({"error": str(failure)} if failure else {})})
    else:
        print_summary(report_console())
    if failure is not None:
        raise failure


class _ReportConsole(Console):
    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError again; rich itself would end the process


def report_console() -> Console:
    """Return a console for the report of a command on stdout."""
    return _ReportConsole(file=report_stream.stream)


def can_redraw(console: Console) -> bool:
    """Whether the console can change a line that it has written. FORCE_COLOR does not make a file a terminal."""
    return console.is_interactive and console.file.isatty()


def print_table(console: Console, rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells, which may have markup.

    On a terminal the cells are aligned, and the last one is wrapped between words, so paths are not broken. A path that
    is wider than the last column begins further left. Elsewhere each row is a line, with two spaces between its cells.
    """
    if not console.file.isatty():
        for row in rows:
            line = Text.from_markup(_GAP.join(row))
            line.rstrip()
            console.print(line, highlight=False, soft_wrap=True)
        return
    cells = [[Text.from_markup(cell) for cell in row] for row in rows]
    columns_before_last = list(zip(*cells, strict=True))[:-1]
    widths = [min(max(cell.cell_len for cell in column), console.width // 3) for column in columns_before_last]
    last_width = console.width - sum(widths) - len(_GAP) * len(widths)
    for *first, last in cells:
        columns = [list(cell.wrap(console, width, overflow="fold")) for cell, width in zip(first, widths, strict=True)]
        lines = _wrap_between_words(last, last_width)
        is_first_too_wide = bool(lines) and last_width < cell_len(lines[0].plain.rstrip()) < console.width
        columns.append([Text(), *lines] if is_first_too_wide else lines)
        for parts in zip_longest(*columns):
            line = Text()
            for part, width in zip(parts, (*widths, 0), strict=True):
                text = part or Text()
                line.append_text(text).append(" " * (width - text.cell_len)).append(_GAP)
            line.rstrip()
            console.print(_with_less_indent(line, console.width), highlight=False, soft_wrap=True)


def _with_less_indent(line: Text, width: int) -> Text:
    """Return a line that is too wide further left if it then fits, because a terminal goes on in column 0."""
    excess = line.cell_len - width
    indent = len(line.plain) - len(line.plain.lstrip())
    return line[excess:] if 0 < excess < indent else line


def _wrap_between_words(text: Text, width: int) -> list[Text]:
    """Return lines that are at most `width` wide, unless a single word is wider."""
    lines: list[Text] = []
    for line in text.split("\n", allow_blank=True):
        breaks, used = [], 0
        for word in re.finditer(r"\S+\s*|\s+", line.plain):
            if used and used + cell_len(word[0].rstrip()) > width:
                breaks.append(word.start())
                used = 0
            used += cell_len(word[0])
        lines += line.divide(breaks)
    return lines


def print_wrapped(console: Console, text: str, color: str) -> None:
    """Print a text for people. On a terminal it is wrapped between words, so paths are not broken."""
    lines = _wrap_between_words(Text(text), console.width) if console.file.isatty() else [Text(text)]
    for line in lines:
        line.rstrip()
        console.print(line, style=color, highlight=False, soft_wrap=True)


def list_means(means: Mapping[str, float]) -> str:
    """Return each name with its mean, and two spaces before it; a whole number has no decimals."""
    return "".join(f"{_GAP}{name} {mean:.{0 if mean.is_integer() else 3}f}" for name, mean in means.items())


def describe_retries(report: Mapping[str, Any]) -> str:
    """Return the number of repeated attempts and engine requests, and one reason that an environment gave."""
    attempts, requests = report["retries"], report["request_retries"]
    reason = f"; an environment gave the reason: {report['retry_reason']}" if report["retry_reason"] else ""
    return (
        f"{attempts:,} attempt{'' if attempts == 1 else 's'}, {requests:,} engine request{'' if requests == 1 else 's'}"
        f"{reason}"
    )


def warn_of_close_failures(report: Mapping[str, Any]) -> str | None:
    """Return how many rollouts failed in `close`, and the command that shows the tracebacks; None if none failed."""
    if not (count := report["close_failures"]):
        return None
    rollouts = "1 rollout" if count == 1 else f"{count:,} rollouts"
    return f"close of the environment failed in {rollouts}: rollout logs {report['run_dir']} --level warning"


def with_errors(report: Mapping[str, Any], errors: "Sequence[DistinctError]") -> dict[str, Any]:
    """Return the report with the same errors that `print_errors` prints."""
    return {**report, "errors": [asdict(error) for error in errors[:_MAX_ERRORS_SHOWN]]}


def print_errors(console: Console, errors: "Sequence[DistinctError]", run_directory: Path) -> None:
    """Print each error in full, with the first rollout that it ended and the number of others."""
    from rollout.texts import escape_controls

    for error in errors[:_MAX_ERRORS_SHOWN]:
        text = (
            f" {error.type}: {error.message}"
            if error.traceback is None
            else "\n" + indent(error.traceback.rstrip(), "  ")
        )
        others = {1: "", 2: " (and 1 other)"}.get(error.rollouts, f" (and {error.rollouts - 1} others)")
        print_wrapped(console, f"{error.first_rollout}{others} {error.status}:{escape_controls(text)}", "red")
    if len(errors) > _MAX_ERRORS_SHOWN:
        left = f"… and {len(errors) - _MAX_ERRORS_SHOWN} more different errors, all in"
        console.print(escape(f"{left}: rollout logs {run_directory} --level warning"), soft_wrap=True)
