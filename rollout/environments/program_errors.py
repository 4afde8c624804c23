"""The errors of programs and of the commands that score them."""

import os
from functools import reduce
from pathlib import Path

from rollout.errors import ConfigurationError, RolloutError
from rollout.programs.process import ProgramEnd
from rollout.programs.workspace import Workspace
from rollout.texts import escape_controls

LAST_LINES = "Its last lines:"
"""What an error has before the end of what a program printed."""
ALL_LINES = "All of it: rollout inspect RUN_DIR ROLLOUT --full"
"""What an error has behind it: no path, because those of two rollouts differ, and equal errors are shown once."""
_MAX_LINES = 20
_MAX_LINE_CHARS = 500
_MAX_CHARS = 5000
_MAX_READ_CHARS = 100_000
_MAX_CAUSES = 50


class ProgramMissing(ConfigurationError):
    """The program of the configuration, or a directory that it needs, is not on this machine."""


class TaskUnusable(ConfigurationError):
    """A task lacks something that a placeholder names."""


class ProgramFailed(RolloutError):
    """A program ended in a way that `failures` counts as a failure, or exceeded a limit.

    Attributes:
        end: how the program ended.
    """

    def __init__(self, message: str, end: ProgramEnd) -> None:
        super().__init__(message)
        self.end = end


class ScoreCommandFailed(RolloutError):
    """The command that scores a program failed, or exceeded a limit."""


def last_lines(output: Path) -> str:
    """Return the end of what a program printed, and where all of it is, as the last sentences of an error."""
    try:
        text = output.read_text("utf-8", "replace").strip()
    except OSError:
        text = ""
    if not text:
        return "It printed nothing."
    lines = [_shorten(escape_controls(line)) for line in text[-_MAX_READ_CHARS:].splitlines()[-_MAX_LINES:]]
    while sum(map(len, lines)) > _MAX_CHARS:
        del lines[0]
    return "\n".join([LAST_LINES, *lines, ALL_LINES])


def hide_workspace(error: BaseException, workspace: Workspace) -> None:
    """Replace the paths of a workspace in the texts of an error and of its causes, so that equal errors look equal."""
    names = {str(workspace.work): "{workdir}", str(workspace.home): "{home}", str(workspace.root): "{workspace}"}

    def hide(value: object) -> object:
        if isinstance(value, str | os.PathLike):
            text = os.fspath(value)
            if isinstance(text, str) and str(workspace.root) in text:
                return reduce(lambda hidden, path: hidden.replace(path, names[path]), names, text)
        return value

    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None:
            return
        cause.args = tuple(map(hide, cause.args))
        if isinstance(cause, OSError):
            for name in ("filename", "filename2"):
                if (path := getattr(cause, name)) is not None:
                    setattr(cause, name, hide(path))
        cause = cause.__cause__ or cause.__context__


def _shorten(line: str) -> str:
    half = _MAX_LINE_CHARS // 2
    return line if len(line) <= _MAX_LINE_CHARS else f"{line[:half]} … {line[-half:]}"
