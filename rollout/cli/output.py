"""What several commands print: one JSON object for programs, or text for people."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape


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
        # Without a terminal no line is wrapped: a path that is broken in two is of no use.
        print_summary(Console() if sys.stdout.isatty() else Console(width=10_000))
    if failure is not None:
        raise failure
