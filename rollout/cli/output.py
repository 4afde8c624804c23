"""What several commands print: one JSON object for programs, or text for people."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

from rich.console import Console
from rich.markup import escape

_MAX_ERRORS_SHOWN = 3
"""Of different errors; the logs have all of them."""


def write_json(value: Any) -> None:
    """Write a value to stdout as one line of JSON."""
    import orjson

    sys.stdout.write(orjson.dumps(value).decode() + "\n")


def print_text_or_json(text: str, value: Any, *, as_json: bool) -> None:
    """Print the text for people, or the value as one line of JSON."""
    if as_json:
        write_json(value)
    else:
        Console(highlight=False).print(escape(text))


def print_report(
    report: Mapping[str, Any], print_summary: Callable[[Console], None], failure: Exception | None, *, as_json: bool
) -> None:
    """Print the report of a run as JSON, or its summary as text, and then raise the failure that ended the run."""
    if as_json:
        write_json({**report, **({"error": str(failure)} if failure else {})})
    else:
        print_summary(unwrapped_console())
    if failure is not None:
        raise failure


def unwrapped_console() -> Console:
    """A console on stdout that wraps no line unless a person reads it: a path that is broken in two is of no use."""
    return Console() if sys.stdout.isatty() else Console(width=10_000)


@dataclass(frozen=True, slots=True)
class RolloutFailure:
    """A rollout that ended with an error.

    Attributes:
        rollout: its name, as the user can pass it to `inspect`.
        status: how it ended, such as failed.
        error: the type and the message of its error.
        traceback: where the environment's code raised it; None if it arose elsewhere.
    """

    rollout: str
    status: str
    error: Mapping[str, str]
    traceback: str | None


def print_failures(console: Console, failures: Iterable[RolloutFailure], logs: Path) -> None:
    """Print each error once, in full, with how often it was met and the first rollout that met it."""
    by_error: dict[tuple[str, str, str], list[RolloutFailure]] = {}
    for failure in sorted(failures, key=lambda failure: failure.rollout):
        key = (failure.status, str(failure.error.get("type")), str(failure.error.get("message")))
        by_error.setdefault(key, []).append(failure)
    for (status, kind, message), alike in list(by_error.items())[:_MAX_ERRORS_SHOWN]:
        first = alike[0]
        others = f" (and {len(alike) - 1} others)" if len(alike) > 1 else ""
        text = f"{kind}: {message}" if first.traceback is None else "\n" + indent(first.traceback.rstrip(), "  ")
        line = escape(f"{first.rollout}{others} {status}: {text}")
        console.print(f"[red]{line}[/red]", highlight=False, soft_wrap=True)
    if len(by_error) > _MAX_ERRORS_SHOWN:
        console.print(f"… and {len(by_error) - _MAX_ERRORS_SHOWN} other errors, all in {logs}", soft_wrap=True)
