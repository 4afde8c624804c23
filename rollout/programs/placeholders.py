"""Fills placeholders such as `{task.question}` or `{base_url}` in the texts of a program's settings.

A placeholder is a name in braces. A name begins with a lower-case word: letters, digits and `_`. After a dot, it may
have further parts, also with upper-case letters and `-`. `{{name}}` is the text `{name}`. All other braces stay as they
are, as in JSON, and so does `${name}`, which is a variable of the shell.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from rollout.errors import RolloutError
from rollout.records.task import Task
from rollout.texts import dump_json

TASK_PREFIX = "task."
_NAME = r"[a-z_][a-z0-9_]*(?:\.[A-Za-z0-9_-]+)*"
_PLACEHOLDER = re.compile(rf"\{{\{{(?P<text>{_NAME})\}}\}}|(?<!\$)\{{(?P<name>{_NAME})\}}")
_MAX_SHOWN = 20
_MAX_COMPARED = 1000
_MAX_NAME_CHARS = 100


class PlaceholderError(RolloutError):
    """A placeholder has a name that does not exist, or a value that cannot be filled in."""


def placeholder_names(text: str) -> frozenset[str]:
    """Return the names of the placeholders in a text."""
    return frozenset(match["name"] for match in _PLACEHOLDER.finditer(text) if match["name"] is not None)


def check_placeholders(text: str, names: frozenset[str]) -> str:
    """Return the text itself. Raise ValueError if it has a placeholder that is neither in `names` nor of the task."""
    for match in _PLACEHOLDER.finditer(text):
        name = match["name"]
        if name is not None and name not in names and not name.startswith(TASK_PREFIX):
            raise ValueError(_unknown(name, [*names, f"{TASK_PREFIX}NAME"]))
    return text


def fill_placeholders(text: str, values: Mapping[str, str], task: Task, key: str) -> str:
    """Return the text with its placeholders filled. Braces in a value are not filled again.

    `{task.id}`, `{task.index}` and `{task.seed}` are those of the task. Any other `{task.NAME}` is `task.data["NAME"]`,
    and `{task.a.b}` is `task.data["a"]["b"]`. `{task.a.0}` is the first item, if `task.data["a"]` is a list. Strings
    are filled as they are, and other values as JSON.

    Args:
        text: the text.
        values: the values of the placeholders that are not of the task.
        task: the task.
        key: the key of the text in the YAML, for errors.

    Raises:
        PlaceholderError: there is no such value; the error names those that exist. Or the value has a character that
            an argument of a program cannot have.
    """

    def fill(match: re.Match[str]) -> str:
        if match["text"] is not None:
            return f"{{{match['text']}}}"
        name = match["name"]
        if name in values:
            return _as_argument(name, values[name], key)
        if not name.startswith(TASK_PREFIX):
            existing = [*values, *(f"{TASK_PREFIX}{known}" for known in _task_values(task))]
            raise PlaceholderError(f"{key}: {_unknown(name, existing)}.")
        return _as_argument(name, _find_in_task(name, task, key), key)

    return _PLACEHOLDER.sub(fill, text)


def _find_in_task(name: str, task: Task, key: str) -> object:
    """Return the value of a placeholder of the task."""
    value: object = _task_values(task)
    found = TASK_PREFIX.removesuffix(".")
    for part in name.split(".")[1:]:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif _is_list(value) and part in _keys(value):
            value = value[int(part)]
        else:
            raise PlaceholderError(_missing(name, part, found, _keys(value), key))
        found = f"{found}.{part}"
    return value


def _missing(name: str, part: str, inside: str, existing: Iterable[str], key: str) -> str:
    """Return that the data of the task lacks a part, and what it has."""
    names = sorted(existing)
    where = "the task" if f"{inside}." == TASK_PREFIX else f"{{{_shorten(inside)}}}"
    has = f"it has {_join(names)}" if names else "it has no parts"
    return (
        f"{where} has no {_shorten(part)!r}, which {key} uses{_suggest(part, names)}; {has}. Add it to the task's "
        f"data, or write {{{{{_shorten(name)}}}}} if you mean the text itself."
    )


def _as_argument(name: str, value: object, key: str) -> str:
    if not isinstance(value, str):
        try:
            return dump_json(value).decode()
        except TypeError as error:
            raise PlaceholderError(
                f"{key}: {{{_shorten(name)}}} is not plain data, so it has no text: {error}."
            ) from None
    if "\0" in value:
        raise PlaceholderError(
            f"{key}: {{{_shorten(name)}}} contains a NUL character, which no argument of a program can have; remove it "
            "from the task's data."
        )
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise PlaceholderError(
            f"{key}: {{{_shorten(name)}}} contains half of a character (a lone surrogate), which no argument of a "
            "program can have; remove it from the task's data."
        ) from None
    return value


def _unknown(name: str, existing: Iterable[str]) -> str:
    """Return that a placeholder does not exist, with the names that exist."""
    names = sorted(existing)
    return (
        f"there is no {{{_shorten(name)}}}{_suggest(name, names)}; the placeholders are "
        f"{_join([f'{{{known}}}' for known in names])}. Write {{{{{_shorten(name)}}}}} if you mean the text itself"
    )


def _suggest(name: str, names: Sequence[str]) -> str:
    """Return the closest name in parentheses, or an empty text."""
    closest = difflib.get_close_matches(name[:_MAX_NAME_CHARS], names[:_MAX_COMPARED], n=1)
    return f" (did you mean {_shorten(closest[0])!r}?)" if closest else ""


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN:,} more" if len(names) > _MAX_SHOWN else ""
    return f"{', '.join(map(_shorten, names[:_MAX_SHOWN]))}{more}"


def _task_values(task: Task) -> Mapping[str, object]:
    return {**task.data, "id": task.id, "index": task.index, "seed": task.seed}


def _keys(value: object) -> list[str]:
    """Return the names of the parts of a value."""
    if isinstance(value, Mapping):
        return [str(key) for key in value]
    return [str(number) for number in range(len(value))] if _is_list(value) else []


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME_CHARS else f"{name[:_MAX_NAME_CHARS]}…"
