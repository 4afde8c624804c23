"""Sets up the log of a run: lines of JSON, each with the run, the environment, the rollout and the attempt."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import orjson
import structlog

from rollout.api_keys import hide_keys, hide_keys_in_json
from rollout.texts import dump_json
from rollout.value_limits import is_within_bounds

_MAX_SHORTENED_CHARS = 100_000


@contextmanager
def log_to_json_file(path: Path, **context: Any) -> Iterator[None]:
    """Write the log to a file while the `with` block runs; every line contains `context`."""
    with path.open("ab", buffering=0) as file:
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(serializer=_dump_json),
            ],
            logger_factory=lambda *_: _LineLogger(file),
            wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
            cache_logger_on_first_use=False,
        )
        structlog.contextvars.bind_contextvars(**context)
        try:
            yield
        finally:
            structlog.contextvars.clear_contextvars()
            structlog.reset_defaults()
            log_warnings_to_stderr()


def log_warnings_to_stderr() -> None:
    """Write warnings and errors of the log to stderr, and drop all others; stdout is for the output of commands."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
            lambda _, __, line: hide_keys(str(line)),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )


class _LineLogger:
    """Writes one line at a time. A line that cannot be written (full disk) is lost: a log must not end a run."""

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def msg(self, line: bytes) -> None:
        with suppress(OSError):
            self._file.write(hide_keys_in_json(line) + b"\n")

    debug = info = warning = error = critical = exception = msg


def _dump_json(event: dict[str, Any], **_: Any) -> bytes:
    """Return a log entry as JSON. It accepts any values that an environment logs, because a log must not end a run."""
    try:
        if is_within_bounds(event):
            return orjson.dumps(event, default=str)
    except Exception:  # noqa: BLE001, S110 - such as a key that is no string, or a value whose str() fails
        pass
    return dump_json({str(name): _shorten(value) for name, value in event.items()})


def _shorten(value: Any) -> bool | float | str | None:
    """Return a value that JSON can always represent; all but numbers, booleans and None become a string."""
    if isinstance(value, bool | float | None):
        return value
    try:
        text = str(value) if is_within_bounds(value) else f"({type(value).__name__})"
    except Exception:  # noqa: BLE001 - a user's class may raise anything
        text = f"({type(value).__name__})"
    return text[:_MAX_SHORTENED_CHARS]
