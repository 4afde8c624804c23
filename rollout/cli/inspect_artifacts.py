"""Shows the artifacts of an attempt: the end of what its program printed, and the names of other files."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.programs.output import OUTPUT_NAME, SCORE_OUTPUT_NAME
from rollout.rundir.artifacts import attempt_directory
from rollout.rundir.directory import RunDirectory
from rollout.trainer import Trajectory

_PRINTERS = {OUTPUT_NAME: "the program", SCORE_OUTPUT_NAME: "the score command"}
_SHOWN_LINES = 20
_SHOWN_CHARACTERS = 500
_SHOWN_FILES = 20
_END_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of an attempt.

    Attributes:
        path: the file.
        n_bytes: its size in bytes.
    """

    path: Path
    n_bytes: int


def artifacts_directory(run_directory: Path, trajectory: Trajectory) -> Path:
    """Return the directory with the artifacts of a trajectory. It may not exist."""
    base = RunDirectory(run_directory).artifacts_path(trajectory.environment)
    return attempt_directory(base, trajectory.rollout, trajectory.attempt)


def artifact_documents(directory: Path) -> list[dict[str, Any]]:
    """Return the artifacts of an attempt as JSON-like data."""
    return [{"path": str(artifact.path), "bytes": artifact.n_bytes} for artifact in _list_artifacts(directory)]


def artifact_lines(directory: Path, *, full: bool) -> Iterator[str]:
    """Yield the lines that show the artifacts of an attempt; none if it has no artifacts.

    Args:
        directory: the directory of its artifacts.
        full: whether to show the output and the list of files without a limit.
    """
    artifacts = {str(artifact.path.relative_to(directory)): artifact for artifact in _list_artifacts(directory)}
    for name, printer in _PRINTERS.items():
        if (output := artifacts.pop(name, None)) is not None:
            yield ""
            yield from _output_lines(output.path, printer, full=full)
    if artifacts:
        shown = list(artifacts)[: None if full else _SHOWN_FILES]
        yield ""
        yield f"other files in {directory}:"
        yield from (f"    {artifacts[name].n_bytes:>12,} bytes  {_in_one_line(name)}" for name in shown)
        if len(shown) < len(artifacts):
            yield f"    … and {len(artifacts) - len(shown)} more files  (--full shows them)"


def _in_one_line(name: str) -> str:
    return name.replace("\n", "\\n")


def _list_artifacts(directory: Path) -> list[Artifact]:
    """Return all regular files below a directory, sorted by their paths; none if the directory does not exist."""
    return sorted(_walk(directory), key=lambda artifact: artifact.path)


def _walk(directory: Path) -> Iterator[Artifact]:
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):  # it was removed just now
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield Artifact(path, status.st_size)


def _output_lines(path: Path, printer: str, *, full: bool) -> Iterator[str]:
    try:
        lines, has_more = _last_lines(path, None if full else _SHOWN_LINES)
    except OSError as error:  # only the user of the worker may read it
        yield f"what {printer} printed cannot be read: {path}: {error.strerror}"
        return
    if not lines:
        yield f"{printer} printed nothing"
        return
    yield f"{printer} printed{f', its last {len(lines)} lines' if has_more else ''} ({path}):"
    yield from (f"    {line if full else _shorten(line)}" for line in lines)


def _last_lines(path: Path, count: int | None) -> tuple[list[str], bool]:
    """Return the last lines of a text file, or all with None, and whether there are more lines before them."""
    with path.open("rb") as file:
        start = 0 if count is None else max(0, file.seek(0, os.SEEK_END) - _END_BYTES)
        file.seek(start)
        data = file.read()
    lines = data.decode("utf-8", "backslashreplace").removesuffix("\n").split("\n") if data else []
    shown = lines if count is None else lines[-count:]
    return [line.removesuffix("\r") for line in shown], start > 0 or len(lines) > len(shown)


def _shorten(line: str) -> str:
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"
