"""Fills placeholders such as `{task.question}` or `{base_url}` in the texts of a program's settings.

A placeholder is a name in braces. Braces around anything else, as in JSON, stay as they are. `{{name}}` is the text
`{name}`.
"""

from collections.abc import Mapping

from rollout.errors import RolloutError
from rollout.records.task import Task

TASK_PREFIX = "task."


class PlaceholderError(RolloutError):
    """A placeholder has a name that does not exist."""


def check_placeholders(text: str, names: frozenset[str]) -> str:
    """Return the text itself. Raise ValueError if it has a placeholder that is neither in `names` nor of the task."""
    raise NotImplementedError


def fill_placeholders(text: str, values: Mapping[str, str], task: Task) -> str:
    """Return the text with its placeholders filled.

    `{task.id}`, `{task.index}` and `{task.seed}` are those of the task. Any other `{task.NAME}` is `task.data["NAME"]`,
    and `{task.a.b}` is `task.data["a"]["b"]`. Strings are filled as they are, and other values as JSON.

    Raises:
        PlaceholderError: the task has no such data; the error names what it has.
    """
    raise NotImplementedError
