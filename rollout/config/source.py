"""Reads a YAML file into plain data and remembers the line of every key, so that an error can point at it.

`${VAR}` and `${VAR:-default}` are replaced inside scalars; a plain (unquoted) scalar gets its type after that, so that
`count: ${N:-4}` is a number. `--set key=value` overrides come last, their values are YAML too.
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

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


class ConfigError(ConfigurationError):
    """A configuration that cannot be used; every line names the file, the line, the key and the cure."""


@dataclass(slots=True)
class ConfigSource:
    """Plain data, and for each key where it was written."""

    name: str
    directory: Path
    data: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where a key stands, or else the nearest key around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name


def read_source(path: Path, overrides: Sequence[str], environment: Mapping[str, str] = os.environ) -> ConfigSource:
    """Read a file and apply the overrides. Raises ConfigError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}. Give the path of a YAML file.") from None
    source = ConfigSource(str(path), path.resolve().parent, {})
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = _Reader(source, environment).read(root, ()) if root is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: this is not YAML: {error.problem}.") from None
    except (yaml.YAMLError, RecursionError) as error:
        told = "an alias that contains itself" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ConfigError(f"{path}: this is not YAML: {told}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected sections (environment, tasks, …), found a {type(data).__name__}.")
    source.data = data
    for override in overrides:
        _apply(source, override)
    return source


class _Reader:
    def __init__(self, source: ConfigSource, environment: Mapping[str, str]) -> None:
        self._source = source
        self._environment = environment

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        self._source.places.setdefault(path, self._place(node))
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(key_node.value)
                if key in found:
                    raise ConfigError(f"{self._place(key_node)}: {_dotted((*path, key))}: this key is given twice.")
                self._source.places[(*path, key)] = self._place(key_node)
                found[key] = self.read(value_node, (*path, key))
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = _VARIABLE.sub(lambda match: self._variable(match, node), node.value)
        if text != node.value and node.style not in ("'", '"'):
            # A plain scalar gets its type from what it came to; it stays a scalar, whatever the variable holds.
            tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
            node = yaml.ScalarNode(tag, text, node.start_mark, node.end_mark)
        elif text != node.value:
            return text
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"{self._place(node)}: {node.value!r} is no value of its type: {error}.") from None

    def _variable(self, match: re.Match[str], node: yaml.Node) -> str:
        found = self._environment.get(match["name"])
        value = found if match["default"] is None else found or match["default"]
        if value is None:
            raise ConfigError(
                f"{self._place(node)}: the environment variable {match['name']} is not set; set it, "
                f"or write a default: ${{{match['name']}:-value}}."
            )
        return value

    def _place(self, node: yaml.Node) -> str:
        return f"{self._source.name}:{node.start_mark.line + 1}"


def _apply(source: ConfigSource, override: str) -> None:
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {override!r}: expected key=value, such as --set engine.sampling.temperature=0.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: the value is not YAML; quote it.") from None
    at: dict[str, Any] = source.data
    for depth, name in enumerate(path[:-1]):
        following = at.setdefault(name, {})
        if following is None:
            following = at[name] = {}
        if not isinstance(following, dict):
            raise ConfigError(f"--set {override!r}: {_dotted(path[: depth + 1])} is not a section.")
        at = following
    at[path[-1]] = value
    source.places[path] = f"--set {key.strip()}"


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)
