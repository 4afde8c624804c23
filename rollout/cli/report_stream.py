"""Keeps stdout for the report of a command, whatever the code of a user prints.

That code may print with `print`, below Python (a C library, `os.write(1, …)`), or from a process that it starts. So
file descriptor 1 becomes a second stderr, and the report goes to a private copy of the original descriptor.
"""

import os
import sys
from typing import TextIO


class ReportStream:
    """The stream to which a command writes its report.

    Attributes:
        as_json: whether the command must write exactly one JSON object to stdout.
        has_json: whether this object was written.
    """

    def __init__(self) -> None:
        self.as_json = False
        self.has_json = False
        self._reserved: TextIO | None = None

    @property
    def stream(self) -> TextIO:
        """The private copy if stdout is reserved, otherwise stdout."""
        return sys.stdout if self._reserved is None else self._reserved

    def reserve(self) -> None:
        """Keep stdout for the report: from now on, all other output to stdout goes to stderr."""
        if self._reserved is not None:
            return
        if sys.stdout is None:  # stdout was closed before we started, so descriptor 1 may now be any file
            self._reserved = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
            return
        if not _is_descriptor_1(sys.stdout):  # for example, a test has replaced stdout
            self._reserved, sys.stdout = sys.stdout, sys.stderr
            return
        sys.stdout.flush()
        self._reserved = open(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: SIM115
        os.dup2(os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else 2, 1)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def write(self, text: str) -> None:
        """Write text of the report."""
        self.stream.write(text)
        self.stream.flush()

    def close(self) -> OSError | None:
        """End the report, and return why it could not be written: a closed pipe (`| head -1`), or a full disk."""
        stream = self.stream
        self.as_json, self.has_json, self._reserved = False, False, None
        try:
            stream.flush()
        except OSError as error:
            # Text that is still in the buffer must not fail again when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            return error
        return None


def _is_descriptor_1(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except OSError:
        return False


report_stream = ReportStream()
