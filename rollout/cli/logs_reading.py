"""Reads the logs of a run's launch and workers, and what programs printed, as one stream of lines in order of time.

It reads each file in pieces, and merges the files while it reads them, so logs of any size take little memory. Between
two calls of `read_new`, no file is open; each call begins where the previous call ended.
"""

import fcntl
import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from rollout.errors import ConfigurationError
from rollout.programs.output import OUTPUT_NAME, SCORE_OUTPUT_NAME
from rollout.rundir.artifacts import attempt_directory

LEVELS = ("debug", "info", "warning", "error", "critical")
_PRINTED_LEVEL = LEVELS.index("info")
_PIECE_BYTES = 64 << 10
_MAX_LINE_BYTES = 16 << 20
_END_EVENTS = ("launch ended", "run ended")
_QUIET_SECONDS = 10.0
"""After this many seconds without a new line, `has_ended` checks whether a launch still holds the run."""


class LogsError(ConfigurationError):
    """There is no run in this directory, its logs cannot be read, or no rollout has this name."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log.

    Attributes:
        at: when it was logged, in seconds since the epoch; for a printed line, when its file was last written.
        who: `launch`, `run`, the name of the worker, or the name of a file with the output of a program.
        text: the line as it was written.
        fields: the fields of the log line by name; None if the line was printed.
        is_of_program: whether the program of the rollout printed it, or the command that scored this program.
    """

    at: float
    who: str
    text: str
    fields: dict[str, Any] | None
    is_of_program: bool = False

    @property
    def level(self) -> int:
        """The index of the line's level in `LEVELS`; a printed line counts as info."""
        name = self.fields.get("level") if self.fields is not None else None
        return LEVELS.index(name) if name in LEVELS else _PRINTED_LEVEL


@dataclass(slots=True)
class LogFile:
    """One log file, and the position up to which it was read.

    Attributes:
        path: the file.
        who: see `LogLine.who`.
        is_of_program: see `LogLine.is_of_program`.
        offset: how many bytes were read, including those of an incomplete line.
        incomplete: the beginning of a line whose end is not written yet.
    """

    path: Path
    who: str
    is_of_program: bool = False
    offset: int = 0
    incomplete: bytes = b""
    _last_at: float = 0.0
    _modified_at: float = 0.0

    def read_new(self, *, is_last: bool) -> Iterator[LogLine]:
        """Yield the lines that were completed since the last call; with `is_last`, also the incomplete last line."""
        while (piece := self._read_piece()) is not None:
            self._modified_at, data = piece
            *lines, self.incomplete = (self.incomplete + data).split(b"\n")
            if len(self.incomplete) > _MAX_LINE_BYTES:
                lines.append(self.incomplete)
                self.incomplete = b""
            for line in lines:
                yield self._parse(line)
        if is_last and self.incomplete:
            yield self._parse(self.incomplete)
            self.incomplete = b""

    def _read_piece(self) -> tuple[float, bytes] | None:
        """Return the time of the file's last write and its next bytes, or None if the file has no more bytes."""
        try:
            with self.path.open("rb", buffering=0) as file:
                status = self.path.stat()
                if status.st_size < self.offset:  # the file was written again from its start
                    self.offset, self.incomplete = 0, b""
                file.seek(self.offset)
                data = file.read(max(_PIECE_BYTES, len(self.incomplete)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LogsError(f"{self.path} cannot be read: {error.strerror}.") from None
        self.offset += len(data)
        return (status.st_mtime, data) if data else None

    def _parse(self, line: bytes) -> LogLine:
        text = line.rstrip(b"\r").decode("utf-8", "backslashreplace")
        # What a program prints is never a log line, whatever it looks like.
        fields, at = (None, None) if self.is_of_program else _logged_fields(line)
        if at is None:
            at = self._modified_at if self.is_of_program or self.path.suffix == ".out" else self._last_at
        self._last_at = at
        return LogLine(at, self.who, text, fields, self.is_of_program)


def _logged_fields(line: bytes) -> tuple[dict[str, Any] | None, float | None]:
    """Return the fields and the time of a log line; None and None for a printed line."""
    try:
        fields = orjson.loads(line)
        return (fields, datetime.fromisoformat(fields["timestamp"]).timestamp()) if "event" in fields else (None, None)
    except (ValueError, TypeError, KeyError):
        return None, None


@dataclass(slots=True)
class RunLogs:
    """The logs of a run, with a filter by level and rollout.

    Attributes:
        directory: the run's directory.
        level: the lowest level of the lines to show.
        rollout: show only lines about this rollout, written as ROLLOUT or ENVIRONMENT/ROLLOUT, and what its program
            printed; None: show all lines of logs.
        knows_rollout: whether a line about this rollout was read; always true if `rollout` is None.
        longest_name: the length of the longest `LogLine.who`.
    """

    directory: Path
    level: str
    rollout: str | None = None
    knows_rollout: bool = field(init=False)
    longest_name: int = 0
    _files: dict[Path, LogFile] = field(default_factory=dict)
    _end_logged: bool = False
    _last_line_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.knows_rollout = self.rollout is None
        if not self.directory.is_dir():
            raise LogsError(f"{self.directory} does not exist. Give the directory of a run.")
        self._find_files()
        if not self._files:
            raise LogsError(f"{self.directory} holds no logs (log.jsonl, workers/). Give the directory of a run.")

    def read_new(self, *, is_last: bool) -> Iterator[LogLine]:
        """Yield the lines to show that were written since the last call, in order of time."""
        self._find_files()
        streams = [file.read_new(is_last=is_last) for file in self._files.values()]
        for line in heapq.merge(*streams, key=lambda line: line.at):
            self._last_line_at = time.monotonic()
            if line.who in ("launch", "run") and line.fields is not None:
                self._end_logged = line.fields["event"] in _END_EVENTS
            if self._is_wanted(line):
                yield line

    def has_ended(self) -> bool:
        """Whether the launch has logged its end, or the logs have no new lines and no launch holds the run."""
        is_quiet = time.monotonic() - self._last_line_at > _QUIET_SECONDS
        return self._end_logged or (is_quiet and not self._is_held())

    def _is_held(self) -> bool:
        """Whether a launch holds the run.

        While this method has the lock, a new launch would be refused. That happens at most once, because the command
        then ends.
        """
        try:
            with (self.directory / "launch.lock").open("rb") as lock_file:
                fcntl.flock(lock_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # a launch has the lock, there is no lock file, or the lock is on another machine
            return True
        return False

    def _find_files(self) -> None:
        """Find the log files that exist now; a worker that joins later adds more."""
        launch = "launch" if (self.directory / "launch.json").exists() else "run"
        found = {self.directory / "log.jsonl": launch} if (self.directory / "log.jsonl").exists() else {}
        workers = sorted((self.directory / "workers").glob("*"))
        found |= {path: path.stem for path in workers if path.suffix in (".jsonl", ".out")}
        for path, who in found.items():
            self._files.setdefault(path, LogFile(path, who))
        for path in self._program_outputs():
            self._files.setdefault(path, LogFile(path, f"{path.parent.name}/{path.name}", is_of_program=True))
        self.longest_name = max((len(file.who) for file in self._files.values()), default=0)

    def _program_outputs(self) -> Iterator[Path]:
        """Yield the files with what the program of the rollout printed, in all attempts; none without a rollout."""
        if self.rollout is None:
            return
        for base in sorted((self.directory / "artifacts").glob("*/")):
            attempts = attempt_directory(base, self._rollout_in(base.name), 1).parent
            for name in (OUTPUT_NAME, SCORE_OUTPUT_NAME):
                yield from sorted(attempts.glob(f"*/{name}"))

    def _rollout_in(self, environment: str) -> str:
        """Return the id of the rollout in an environment that exists."""
        assert self.rollout is not None
        return f"/{self.rollout}".rpartition(f"/{environment}/")[2].removeprefix("/")

    def _is_wanted(self, line: LogLine) -> bool:
        if self.rollout is not None and not self._is_about_rollout(line):
            return False
        self.knows_rollout = True
        return line.level >= LEVELS.index(self.level)

    def _is_about_rollout(self, line: LogLine) -> bool:
        assert self.rollout is not None
        if line.is_of_program:
            return True
        rollout = line.fields.get("rollout") if line.fields is not None else None
        if not rollout or not isinstance(rollout, str):
            return False
        if rollout == self.rollout:
            return True
        # The name of a worker begins with its environment; `rollout run` has only one environment.
        environment = self.rollout.removesuffix(f"/{rollout}").rpartition("/")[2]
        is_same_environment = line.who == "run" or line.who.startswith(f"{environment}-")
        return self.rollout.endswith(f"/{rollout}") and is_same_environment
