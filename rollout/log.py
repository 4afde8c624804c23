"""The run's log: JSON lines by structlog, with run, environment, rollout and attempt bound."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import orjson
import structlog


@contextmanager
def log_to_json_file(path: Path, **context: Any) -> Iterator[None]:
    """Send the log to a file as long as the context is open; every line contains `context`."""
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
    """Send warnings and errors to stderr and drop the rest; stdout is for what a command prints."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )


class _LineLogger:
    """Writes one line at a time. If the disk is full, the line is lost: a log must not end the run it describes."""

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def msg(self, line: bytes) -> None:
        with suppress(OSError):
            self._file.write(line + b"\n")

    debug = info = warning = error = critical = exception = msg


def _dump_json(event: Any, **_: Any) -> bytes:
    try:
        return orjson.dumps(event, default=str)
    except TypeError:
        # The text of an error contains half of a surrogate pair. It is logged anyway, and does not end the caller.
        return json.dumps(event, default=str).encode()
