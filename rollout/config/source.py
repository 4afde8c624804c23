"""Reads a YAML file into plain data and remembers the line of every key, so that an error can name it.

`${VAR}` and `${VAR:-default}` are replaced inside scalars. A plain (unquoted) scalar gets its type after that, so that
`count: ${N:-4}` is a number. The overrides of `--set key=value` come last, and their values are YAML too.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rollout.errors import ConfigurationError

KeyPath = tuple[str | int, ...]

_VARIABLE_PATTERN = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


class ConfigFileError(ConfigurationError):
    """A configuration that cannot be used; every line of the text names the file, the line, the key and the fix."""


@dataclass(slots=True)
class ConfigDocument:
    """Plain data, and for each key where it was written.

    Attributes:
        file_name: the file that was read, as it was given.
        directory: the directory of this file.
        data: the content of the file, with the overrides.
        locations: for each key, the file and the line where it is, or the override.
    """

    file_name: str
    directory: Path
    data: dict[str, Any]
    locations: dict[KeyPath, str] = field(default_factory=dict)

    def location_of(self, key_path: KeyPath) -> str:
        """Return where a key is written, or else the nearest key that contains it."""
        for length in range(len(key_path), 0, -1):
            if key_path[:length] in self.locations:
                return self.locations[key_path[:length]]
        return self.file_name


def read_document(path: Path, overrides: Sequence[str], variables: Mapping[str, str] = os.environ) -> ConfigDocument:
    """Read a file and apply the overrides. Raises ConfigFileError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigFileError(f"{path}: cannot be read: {reason}. Give the path of a YAML file.") from None
    document = ConfigDocument(str(path), path.resolve().parent, {})
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = _YamlReader(document, variables).read(root, ()) if root is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigFileError(f"{path}:{line}: this is not YAML: {error.problem}.") from None
    except (yaml.YAMLError, RecursionError) as error:
        problem = "an alias that contains itself" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ConfigFileError(f"{path}: this is not YAML: {problem}.") from None
    if not isinstance(data, dict):
        raise ConfigFileError(f"{path}: expected sections (environment, tasks, …), found a {type(data).__name__}.")
    document.data = data
    for override in overrides:
        _apply_override(document, override)
    return document


class _YamlReader:
    def __init__(self, document: ConfigDocument, variables: Mapping[str, str]) -> None:
        self._document = document
        self._variables = variables

    def read(self, node: yaml.Node, key_path: KeyPath) -> Any:
        self._document.locations.setdefault(key_path, self._location(node))
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(key_node.value)
                if key in mapping:
                    raise ConfigFileError(
                        f"{self._location(key_node)}: {_dotted_key((*key_path, key))}: this key is given twice."
                    )
                self._document.locations[(*key_path, key)] = self._location(key_node)
                mapping[key] = self.read(value_node, (*key_path, key))
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*key_path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._read_scalar(node)

    def _read_scalar(self, node: yaml.ScalarNode) -> Any:
        text = _VARIABLE_PATTERN.sub(lambda match: self._substitute_variable(match, node), node.value)
        if text != node.value and node.style not in ("'", '"'):
            # A plain scalar gets its type from the resulting text, but stays a scalar whatever the variable contains.
            tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
            node = yaml.ScalarNode(tag, text, node.start_mark, node.end_mark)
        elif text != node.value:
            return text
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigFileError(f"{self._location(node)}: {node.value!r} is no value of its type: {error}.") from None

    def _substitute_variable(self, match: re.Match[str], node: yaml.Node) -> str:
        variable = self._variables.get(match["name"])
        value = variable if match["default"] is None else variable or match["default"]
        if value is None:
            raise ConfigFileError(
                f"{self._location(node)}: the environment variable {match['name']} is not set; set it, "
                f"or write a default: ${{{match['name']}:-value}}."
            )
        return value

    def _location(self, node: yaml.Node) -> str:
        return f"{self._document.file_name}:{node.start_mark.line + 1}"


def _apply_override(document: ConfigDocument, override: str) -> None:
    key, equals, text = override.partition("=")
    key_path = tuple(key.strip().split("."))
    if not equals or not all(key_path):
        raise ConfigFileError(f"--set {override!r}: expected key=value, such as --set engine.sampling.temperature=0.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigFileError(f"--set {override!r}: the value is not YAML; quote it.") from None
    section: dict[str, Any] = document.data
    for depth, name in enumerate(key_path[:-1]):
        subsection = section.setdefault(name, {})
        if subsection is None:
            subsection = section[name] = {}
        if not isinstance(subsection, dict):
            raise ConfigFileError(f"--set {override!r}: {_dotted_key(key_path[: depth + 1])} is not a section.")
        section = subsection
    section[key_path[-1]] = value
    document.locations[key_path] = f"--set {key.strip()}"


def _dotted_key(key_path: KeyPath) -> str:
    return ".".join(str(part) for part in key_path)
