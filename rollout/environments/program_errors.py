"""The errors of programs and of the commands that score them."""

from pathlib import Path

from rollout.errors import ConfigurationError, RolloutError
from rollout.programs.process import ProgramEnd
from rollout.texts import escape_controls

_MAX_LINES = 10
_MAX_CHARS = 2000


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
    """Return the end of what a program printed, as the last sentence of an error."""
    try:
        text = output.read_text("utf-8", "replace").strip()
    except OSError:
        text = ""
    if not text:
        return "It printed nothing."
    lines = escape_controls(text[-_MAX_CHARS:]).splitlines()[-_MAX_LINES:]
    return "Its last lines:\n" + "\n".join(lines)
