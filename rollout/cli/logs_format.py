"""Formats a line of a log for people: time, level, worker, event, and the rest as KEY=VALUE; a traceback below it."""

import json
import os
import sys
from dataclasses import dataclass
from datetime import datetime
from textwrap import indent
from typing import Any

import typer

from rollout.cli.logs_reading import LogLine
from rollout.texts import escape_controls

_COLORS = {"debug": "bright_black", "warning": "yellow", "error": "red", "critical": "red"}
_SHOWN_ELSEWHERE = frozenset(("event", "level", "timestamp", "exception", "run"))
_TIME_WIDTH, _LEVEL_WIDTH = 19, 8


@dataclass(frozen=True, slots=True)
class LineFormat:
    """How lines are written: aligned and with colours on a terminal, plain elsewhere.

    Attributes:
        is_terminal: whether columns are aligned.
        has_colors: whether columns have colours.
    """

    is_terminal: bool
    has_colors: bool

    @classmethod
    def of_stdout(cls) -> "LineFormat":
        """Return the format for stdout; the variable NO_COLOR turns colours off."""
        is_terminal = sys.stdout.isatty()
        return cls(is_terminal, is_terminal and not os.environ.get("NO_COLOR"))

    def text_of(self, line: LogLine, name_width: int) -> str:
        """Return the text of a line, with a line break at its end."""
        if line.fields is None:
            return "  ".join((*self._columns("-", "printed", line.who, name_width), escape_controls(line.text))) + "\n"
        fields = line.fields
        at = datetime.fromtimestamp(line.at).strftime("%Y-%m-%d %H:%M:%S")
        level = str(fields.get("level", "info"))
        details = " ".join(
            f"{name}={_format_value(value)}"
            for name, value in fields.items()
            if name not in _SHOWN_ELSEWHERE and not (name == "worker" and value == line.who)
        )
        columns = [
            *self._columns(at, level, line.who, name_width),
            str(fields["event"]),
            *([details] if details else []),
        ]
        traceback = indent(escape_controls(str(fields.get("exception", "")).rstrip()), "    ")
        return "  ".join(columns) + "\n" + (f"{traceback}\n" if traceback else "")

    def _columns(self, at: str, level: str, who: str, name_width: int) -> list[str]:
        if self.is_terminal:
            at, level, who = at.ljust(_TIME_WIDTH), level.ljust(_LEVEL_WIDTH), who.ljust(name_width)
        if not self.has_colors:
            return [at, level, who]
        color = _COLORS.get(level.strip())
        return [typer.style(at, dim=True), typer.style(level, fg=color), typer.style(who, fg="cyan")]


def _format_value(value: Any) -> str:
    """Return a single word as it is, and everything else as JSON."""
    if isinstance(value, str) and value.isprintable() and value and not set(value) & set(' "='):
        return value
    return json.dumps(value, ensure_ascii=not str(value).isprintable(), separators=(",", ":"))
