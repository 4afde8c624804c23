"""The texts of a program's settings, with their placeholders filled for one task."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rollout.environments.program_settings import (
    DIRECTORY_PLACEHOLDERS,
    PLACEHOLDERS,
    ProgramSettings,
    ScoreCommand,
)
from rollout.errors import RolloutError
from rollout.programs.placeholders import fill_placeholders, placeholder_names
from rollout.records.task import Task

SCORE_KEY = "environment.score.command"
"""The key of the command that scores."""
_CONFIG_DIRECTORY = "{config_dir}/"
_IN_CONFIG_DIRECTORY = re.compile(r"""\{config_dir\}[^\s'",;:]*""")


_MAX_ARGUMENT_BYTES = 128 << 10


class ArgumentTooLong(RolloutError):
    """An argument of a program is longer than the system accepts."""


@dataclass(frozen=True, slots=True)
class ProgramTexts:
    """Fills the texts of a program's settings. Each method gets the key of a text in the YAML, for errors.

    Attributes:
        task: the task.
        values: the values of the placeholders that are not of the task.
    """

    task: Task
    values: Mapping[str, str]

    def fill(self, key: str, text: str) -> str:
        """Return a text with its placeholders filled.

        Raises:
            PlaceholderError: the task lacks a value, or it cannot be filled in.
        """
        return fill_placeholders(text, self.values, self.task, key)

    def fill_all(self, key: str, texts: Mapping[str, str]) -> dict[str, str]:
        """Return named texts with their placeholders filled."""
        return {name: self.fill(f"{key}.{name}", text) for name, text in texts.items()}

    def arguments(self, key: str, texts: Iterable[str]) -> tuple[str, ...]:
        """Return arguments. A path below config_dir gets no `..`, because a sandbox shows fewer directories."""
        return tuple(self._argument(key, text) for text in texts)

    def named_paths(self, key: str, texts: Iterable[str]) -> tuple[Path, ...]:
        """Return the files and directories that texts name by {config_dir}.

        Files beside them stay hidden in a sandbox, because they often have the answers.
        """
        found: dict[Path, None] = {}
        for text in texts:
            for name in _IN_CONFIG_DIRECTORY.findall(text):
                path = Path(self._argument(key, name))
                if path.exists():
                    found[path] = None
        return tuple(found)

    def _argument(self, key: str, text: str) -> str:
        filled = self.fill(key, text)
        return os.path.normpath(filled) if text.startswith(_CONFIG_DIRECTORY) else filled


def require_short_arguments(key: str, argv: Iterable[str]) -> None:
    """Raise ArgumentTooLong if the system would refuse one of these arguments."""
    for argument in argv:
        if (length := len(os.fsencode(argument))) >= _MAX_ARGUMENT_BYTES:
            raise ArgumentTooLong(
                f"{key}: the argument {argument[:60]!r}… has {length:,} bytes, and Linux accepts less than "
                f"{_MAX_ARGUMENT_BYTES:,}. Pass the text by environment.stdin or environment.files."
            )


def program_key(settings: ProgramSettings) -> str:
    """Return the key that says which program is started."""
    if settings.agent is None:
        return "environment.command"
    return "environment.agent" if settings.executable is None else "environment.executable"


def check_texts(settings: ProgramSettings, task: Task) -> None:
    """Fill all texts that a rollout of this task fills, with other values in place of those of a rollout.

    Raises:
        PlaceholderError: the task lacks a value, or it cannot be filled in.
    """
    texts = ProgramTexts(task, {name: name for name in PLACEHOLDERS | DIRECTORY_PLACEHOLDERS})
    for key, text in _iter_texts(settings):
        texts.fill(key, text)


def _iter_texts(settings: ProgramSettings) -> Iterator[tuple[str, str]]:
    """Yield the key of each text that a rollout fills, and the text."""
    yield from (("environment.command", text) for text in settings.command)
    if settings.agent is not None:
        yield "environment.prompt", settings.prompt
        yield from (("environment.arguments", text) for text in settings.arguments)
        yield "environment.executable", settings.executable or ""
    yield "environment.stdin", settings.stdin
    yield "environment.template", settings.template or ""
    yield from ((f"environment.env.{name}", text) for name, text in settings.env.items())
    yield from ((f"environment.files.{name}", text) for name, text in settings.files.items())
    if isinstance(settings.score, ScoreCommand):
        yield from ((SCORE_KEY, text) for text in settings.score.command)
        yield "environment.score.template", settings.score.template or ""


def missing_path(text: str, config_directory: Path) -> Path | None:
    """Return the path that an argument names by `{config_dir}/` at its beginning, if nothing is there; else None.

    The argument may be a line of a shell, which continues behind the path.
    """
    if not text.startswith(_CONFIG_DIRECTORY):
        return None
    match = _IN_CONFIG_DIRECTORY.match(text)
    assert match is not None
    if len(placeholder_names(match[0])) > 1:  # the path depends on the rollout
        return None
    whole, first = (
        Path(os.path.normpath(config_directory / name.removeprefix(_CONFIG_DIRECTORY))) for name in (text, match[0])
    )
    return None if whole.exists() or first.exists() else first
