"""Writes values that contain variables, such as `${NAME}`, into the files of a run as the user wrote them.

So no file of a run contains a secret from a variable. A process that reads such a file replaces the variables again.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rollout.config.problems import KeyPath


@dataclass(frozen=True, slots=True)
class Reference:
    """A single value of a YAML file that contains variables.

    Attributes:
        text: the value as the user wrote it, such as `${NAME}`.
        value: the same with its variables replaced.
        is_quoted: whether the user wrote quotes around it, which make it a string.
        variables: for each `${NAME}` in the text, the content of the variable; only variables that are set.
    """

    text: str
    value: str
    is_quoted: bool
    variables: Mapping[str, str]


_MIN_REPLACED_CHARS = 4
_PLAIN_WORDS = frozenset(("true", "false", "null", "none"))


class _WrittenScalar(str):
    """The text of a reference, for a YAML file."""

    is_quoted = False


def put_all_back(values: dict[str, Any], references: Mapping[KeyPath, Reference], directory: Path) -> None:
    """Replace each value that came from a variable by the text that the user wrote, such as `${NAME}`.

    An alias or a check of a section may have copied or moved such a value, or made another value from it. So every
    other copy of the variable's content in the section is replaced, too, unless it is very short or a common word.
    A value that a default or a check has removed stays removed.
    """
    for key_path, reference in references.items():
        _put_back(values, key_path, reference, directory)
    for section in {key_path[0] for key_path in references if key_path}:  # sections do not share values
        variables = _replaceable_variables(
            found for key_path, found in references.items() if key_path[:1] == (section,)
        )
        if variables and section in values:
            # Replace all values in one pass, so that no text in a new reference is replaced again. The longest value is
            # first, so that it is not replaced in parts.
            pattern = re.compile("|".join(re.escape(value) for value in sorted(variables, key=len, reverse=True)))
            values[str(section)] = _replace_variables(values[str(section)], pattern, variables)


def _replaceable_variables(references: Iterable[Reference]) -> dict[str, str]:
    """Return the values to replace, each with the variable that replaces it, such as `${NAME}`."""
    return {
        value: written
        for reference in references
        for written, value in reference.variables.items()
        if len(value) >= _MIN_REPLACED_CHARS and value.lower() not in _PLAIN_WORDS
    }


def _replace_variables(value: Any, pattern: re.Pattern[str], variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replace_variables(inner, pattern, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replace_variables(inner, pattern, variables) for inner in value]
    if not isinstance(value, str) or isinstance(value, _WrittenScalar):
        return value
    text = pattern.sub(lambda match: variables[match[0]], value)
    return value if text == value else _written_scalar(text, is_quoted=True)


def _put_back(values: Any, key_path: KeyPath, reference: Reference, directory: Path) -> None:
    for part in key_path[:-1]:
        values = _child(values, part)
    last: str | int = key_path[-1]
    if isinstance(values, list) and _child(values, last) != reference.value and reference.value in values:
        last = values.index(reference.value)  # a check has moved the value
    if (value := _child(values, last)) is None:
        return
    text = reference.text
    if not Path(reference.value).is_absolute() and value == str(Path(directory, reference.value).resolve()):
        text = f"{directory}/{text}"
    values[last] = _written_scalar(text, reference.is_quoted)


def _written_scalar(text: str, is_quoted: bool) -> _WrittenScalar:
    scalar = _WrittenScalar(text)
    scalar.is_quoted = is_quoted
    return scalar


def dump_yaml(values: Any) -> str:
    """Return values as YAML. A reference is in quotes if the user wrote quotes, because they make it a string."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_scalar(dumper: _Dumper, scalar: _WrittenScalar) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(scalar), style="'" if scalar.is_quoted else None)


_Dumper.add_representer(_WrittenScalar, _represent_scalar)


def _child(values: Any, part: str | int) -> Any:
    if isinstance(values, dict):
        return values.get(part)
    return values[part] if isinstance(values, list) and isinstance(part, int) and part < len(values) else None
