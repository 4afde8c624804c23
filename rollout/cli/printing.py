"""What commands say at their end: one JSON object for programs, or text for people."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from rich.console import Console


def write_json(value: Any) -> None:
    """One line on stdout."""
    sys.stdout.write(orjson.dumps(value).decode() + "\n")


def tell_end(
    report: Mapping[str, Any], summary: Callable[[Console], None], failure: Exception | None, *, as_json: bool
) -> None:
    """The report of what was played, or the summary of it; then raise what ended it, if something did."""
    if as_json:
        write_json({**report, **({"error": str(failure)} if failure else {})})
    else:
        # Where nobody watches, a line is as long as what it says: a path that is broken in two is of no use.
        summary(Console() if sys.stdout.isatty() else Console(width=10_000))
    if failure is not None:
        raise failure
