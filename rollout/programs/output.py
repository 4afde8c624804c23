"""Writes what a program prints into a file: without keys, and only the beginning and the end of long output.

    output = OutputFile(path)
    output.add(data)
    ...
    output.close()

The beginning is in the file at once, and the end when the program has ended. This module imports only the standard
library.
"""

import os

from rollout.api_keys import KeyHider

OUTPUT_NAME = "output.txt"
"""The file in the attempt's directory with what the program printed."""
SCORE_OUTPUT_NAME = "score-output.txt"
"""The file in the attempt's directory with what the score command printed."""
HEAD_BYTES = 128 << 10
"""How much of the beginning is kept."""
TAIL_BYTES = 128 << 10
"""How much of the end is kept."""


class OutputFile:
    """The file for the output of one program. Only the user of the worker can read it.

    Attributes:
        total_bytes: how much the program has printed.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        self._keys = KeyHider()
        self._head_room = HEAD_BYTES
        self._tail = bytearray()
        self._tail_total = 0
        self._failure: OSError | None = None
        self.total_bytes = 0

    def add(self, data: bytes) -> None:
        """Take what the program has printed."""
        self.total_bytes += len(data)
        self._keep(self._keys.hide(data))

    def close(self) -> str | None:
        """Write the end, and close the file. Return why the file is not complete, or None."""
        self._keep(self._keys.end())
        left_out = self._tail_total - min(len(self._tail), TAIL_BYTES)
        if left_out:
            self._write(f"\n… {left_out:,} bytes are left out …\n".encode())
        self._write(bytes(self._tail[-TAIL_BYTES:]))
        os.close(self._file)
        return None if self._failure is None else self._failure.strerror

    def _keep(self, data: bytes) -> None:
        head, rest = data[: self._head_room], data[self._head_room :]
        self._head_room -= len(head)
        self._write(head)
        self._tail += rest
        self._tail_total += len(rest)
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]

    def _write(self, data: bytes) -> None:
        """Write to the file, unless an earlier write failed. A full disk must not end the guardian."""
        view = memoryview(data)
        try:
            while view and self._failure is None:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            self._failure = error
