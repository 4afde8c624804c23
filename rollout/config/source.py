"""Reads a YAML file into plain data and remembers the line of every key, so that an error can name the line.

`${VAR}` and `${VAR:-default}` are replaced inside scalars. The type of a plain (unquoted) scalar is decided after
that, so `count: ${N:-4}` is a number. The overrides of `--set key=value` are read in the same way, and replace values
of the file.

The file is untrusted input. Its size, its depth and the number of its values (with aliases replaced) have limits.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rollout.config.problems import KeyPath, shorten, show_key, show_override
from rollout.config.references import Reference
from rollout.errors import ConfigurationError
from transports.redaction import hide_passwords
from transports.urls import has_plain_password

_MAX_FILE_BYTES = 256 << 10
_MAX_DEPTH = 64
_MAX_VALUES = 100_000
_MAX_NUMBER_LENGTH = 100
_MAX_INTEGER = 2**63
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_KINDS = {
    "tag:yaml.org,2002:timestamp": "a date or a time",
    "tag:yaml.org,2002:int": "a whole number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:null": "null",
}
"""The tags that YAML gives a value because of its form, each in words for messages."""
_VARIABLE_PATTERN = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
_SURROGATE_PATTERN = re.compile(r"[\ud800-\udfff]")
_NO_KEY_PATTERN = re.compile(r"[:@\ud800-\udfff]")
"""Characters that no key after --set contains. With : or @, the user probably wrote a URL and forgot its key."""


class ConfigFileError(ConfigurationError):
    """A configuration is not usable. Each line of the message has the file, the line, the key and the fix."""


@dataclass(slots=True)
class ConfigDocument:
    """The data of a configuration, and where each key is written.

    Attributes:
        file_name: the file that was read, as it was given.
        directory: the directory of this file.
        data: the content of the file, with the overrides.
        locations: for each key, the file and the line where it is, or the override.
        references: the values that contain variables, such as `${NAME}`, by their keys.
        plain_passwords: the keys where a URL contains a password instead of a variable.
    """

    file_name: str
    directory: Path
    data: dict[str, Any]
    locations: dict[KeyPath, str] = field(default_factory=dict)
    references: dict[KeyPath, Reference] = field(default_factory=dict)
    plain_passwords: list[KeyPath] = field(default_factory=list)

    def location_of(self, key_path: KeyPath) -> str:
        """Return the place of a key; for a missing key, the place of the nearest section around it."""
        for length in range(len(key_path), 0, -1):
            if key_path[:length] in self.locations:
                return self.locations[key_path[:length]]
        return self.file_name

    def written_at(self, key_path: KeyPath) -> Any:
        """Return the value of a key, or of the nearest section around it, as the user wrote it.

        Its variables are not replaced, because their content may be a secret.
        """
        value: Any = self.data
        found: KeyPath = ()
        for part in key_path:
            if not ((isinstance(value, dict) and part in value) or _is_index(value, part)):
                break
            value, found = value[part], (*found, part)
        return self._with_references(value, found)

    def _with_references(self, value: Any, key_path: KeyPath) -> Any:
        if key_path in self.references:
            return self.references[key_path].text
        if isinstance(value, dict):
            return {key: self._with_references(inner, (*key_path, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._with_references(inner, (*key_path, index)) for index, inner in enumerate(value)]
        return value


def _is_index(value: Any, part: str | int) -> bool:
    return isinstance(value, list) and isinstance(part, int) and 0 <= part < len(value)


def read_document(path: Path, overrides: Sequence[str], variables: Mapping[str, str] = os.environ) -> ConfigDocument:
    """Read a YAML file and apply the overrides. Raises ConfigFileError if the file or an override is not valid."""
    text = _read_text(path)
    document = ConfigDocument(str(path), path.resolve().parent, {})
    try:
        root = _compose(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigFileError(f"{path}:{line}: {_describe_yaml_error(error)}.") from None
    except yaml.YAMLError as error:
        raise ConfigFileError(f"{path}: this is not YAML: {' '.join(str(error).split())}.") from None
    reader = _YamlReader(document, variables, lambda node: f"{path}:{node.start_mark.line + 1}")
    data: Any = {}
    if root is not None:
        reader.check_size(root)
        data = reader.read(root, ())
    if not isinstance(data, dict):
        raise ConfigFileError(f"{path}: expected sections (environment, tasks, …), found a {type(data).__name__}.")
    document.data = data
    for override in overrides:
        _apply_override(document, override, variables)
    return document


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ConfigFileError(
                f"{path}: this file has more than {_MAX_FILE_BYTES:,} bytes, the limit for a configuration. Put the "
                "data of tasks in another file, and name it in tasks.source."
            )
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigFileError(f"{path}:{line}: this is not UTF-8. Save the file as UTF-8.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigFileError(f"{path}: cannot be read: {reason}. Give the path of a YAML file.") from None


class _NestedTooDeeply(yaml.MarkedYAMLError):
    """Lists and keys are nested deeper than the limit."""


class _BoundedLoader(yaml.SafeLoader):
    """Refuses deep nesting, before the recursive composer reaches Python's recursion limit."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _NestedTooDeeply(problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _compose(text: str) -> yaml.Node | None:
    node: yaml.Node | None = yaml.compose(text, Loader=_BoundedLoader)
    return node


def _describe_yaml_error(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, _NestedTooDeeply):
        return f"lists and keys are nested deeper than {_MAX_DEPTH} levels, the limit for a configuration"
    return f"this is not YAML: {hide_passwords(str(error.problem))}"


def _describe_tag(node: yaml.ScalarNode) -> str:
    """Return why a scalar is not valid, and what to write."""
    kind = _KINDS.get(node.tag)
    if kind is None:
        return f"has the tag {shorten(node.tag)}, which is not supported; remove the tag, or write the value in quotes"
    is_marked = node.tag != yaml.SafeLoader("").resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
    mark = f", without !!{node.tag.rpartition(':')[2]} before it" if is_marked or node.style else ""
    return f"looks like {kind}, but is not valid; if it is a string, write it in quotes{mark}"


class _YamlReader:
    def __init__(
        self, document: ConfigDocument, variables: Mapping[str, str], location: Callable[[yaml.Node], str]
    ) -> None:
        self._document = document
        self._variables = variables
        self._location = location
        self._measures: dict[int, tuple[int, int] | None] = {}

    def check_size(self, node: yaml.Node, depth: int = 0) -> None:
        """Raise ConfigFileError if a node has too many values or levels after its aliases are replaced."""
        values, levels = self._measure(node)
        if values > _MAX_VALUES:
            raise self._error(
                node, (), f"with its aliases replaced, this has more than {_MAX_VALUES:,} values; use fewer"
            )
        if depth + levels > _MAX_DEPTH:
            raise self._error(node, (), f"with its aliases replaced, this is nested deeper than {_MAX_DEPTH} levels")

    def _measure(self, node: yaml.Node) -> tuple[int, int]:
        """Return the number of values in a node, and the number of its levels. Each node is visited once."""
        if isinstance(node, yaml.ScalarNode):
            return 1, 1
        if id(node) in self._measures:
            if (known := self._measures[id(node)]) is None:
                raise self._error(node, (), "an alias contains itself")
            return known
        self._measures[id(node)] = None  # None marks a node that is being measured
        items = node.value if isinstance(node, yaml.SequenceNode) else [value for _, value in node.value]
        inner = [self._measure(item) for item in items]
        values = min(1 + sum(values for values, _ in inner), _MAX_VALUES + 1)
        self._measures[id(node)] = measure = values, 1 + max((levels for _, levels in inner), default=0)
        return measure

    def read(self, node: yaml.Node, key_path: KeyPath) -> Any:
        self._document.locations.setdefault(key_path, self._location(node))
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = self._read_key(key_node, key_path)
                if key in mapping:
                    raise self._error(key_node, (*key_path, key), "this key is given twice")
                self._document.locations[(*key_path, key)] = self._location(key_node)
                mapping[key] = self.read(value_node, (*key_path, key))
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*key_path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._read_scalar(node, key_path)

    def _read_key(self, node: yaml.Node, key_path: KeyPath) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, key_path, "a key is a list or a mapping; expected a word")
        if _SURROGATE_PATTERN.search(node.value):
            raise self._error(
                node, key_path, "a key has a lone surrogate, which is half of a character; write the whole character"
            )
        return str(node.value)

    def _read_scalar(self, node: yaml.ScalarNode, key_path: KeyPath) -> Any:
        written = node.value
        is_quoted = node.style in ("'", '"')
        text = _VARIABLE_PATTERN.sub(lambda match: self._substitute_variable(match, node, key_path), written)
        if _SURROGATE_PATTERN.search(text):
            raise self._error(
                node, key_path, "the text has a lone surrogate, which is half of a character; write the whole character"
            )
        if _VARIABLE_PATTERN.search(written):
            variables = {
                match[0]: value
                for match in _VARIABLE_PATTERN.finditer(written)
                if (value := self._variables.get(match["name"]))
            }
            self._document.references[key_path] = Reference(written, text, is_quoted, variables)
        if has_plain_password(written):
            self._document.plain_passwords.append(key_path)
        if text == written:
            return self._construct(node, key_path, written)
        if is_quoted:
            return text
        # A plain scalar gets its type from the resulting text. It stays a scalar, whatever the variable contains.
        tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        return self._construct(yaml.ScalarNode(tag, text, node.start_mark, node.end_mark), key_path, written)

    def _construct(self, node: yaml.ScalarNode, key_path: KeyPath, written: str) -> Any:
        shown = repr(shorten(hide_passwords(written)))
        if node.tag in _NUMBER_TAGS and len(node.value) > _MAX_NUMBER_LENGTH:
            raise self._error(node, key_path, f"{shown} is too long for a number; write it in quotes if it is a string")
        try:
            value = yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError):
            # The message of the library is not shown, because it may contain the content of a variable.
            raise self._error(node, key_path, f"{shown} {_describe_tag(node)}") from None
        if isinstance(value, bytes):
            raise self._error(node, key_path, "binary data is not supported; write a string")
        if isinstance(value, int) and not -_MAX_INTEGER <= value < _MAX_INTEGER:
            raise self._error(node, key_path, f"{shown} does not fit in 64 bits; write a number below 2**63")
        if isinstance(value, float) and not float("-inf") < value < float("inf"):
            raise self._error(node, key_path, f"Input should be a finite number, found {value}")
        return value

    def _substitute_variable(self, match: re.Match[str], node: yaml.Node, key_path: KeyPath) -> str:
        variable = self._variables.get(match["name"])
        value = variable if match["default"] is None else variable or match["default"]
        if value is None:
            raise self._error(
                node,
                key_path,
                f"the environment variable {match['name']} is not set; set it, or write a default: "
                f"${{{match['name']}:-value}}",
            )
        return value

    def _error(self, node: yaml.Node, key_path: KeyPath, problem: str) -> ConfigFileError:
        key = f"{show_key(key_path)}: " if key_path else ""
        return ConfigFileError(f"{self._location(node)}: {key}{problem}.")


def _apply_override(document: ConfigDocument, override: str, variables: Mapping[str, str]) -> None:
    key, equals, text = override.partition("=")
    key_path = tuple(key.strip().split("."))
    shown_key = show_key(key_path)
    if not equals or not all(key_path) or len(key_path) > _MAX_DEPTH or _NO_KEY_PATTERN.search(key):
        raise ConfigFileError(
            f"--set {shorten(show_override(override))!r}: expected key=value, such as "
            "--set engine.sampling.temperature=0."
        )
    try:
        root = _compose(text)
    except yaml.YAMLError:
        raise ConfigFileError(
            f"--set {shown_key}: the value is not YAML, or is nested too deeply; write it in quotes."
        ) from None
    section: dict[str, Any] = document.data
    for depth, name in enumerate(key_path[:-1]):
        subsection = section.setdefault(name, {})
        if subsection is None:
            subsection = section[name] = {}
        if not isinstance(subsection, dict):
            raise ConfigFileError(
                f"--set {shown_key}: {show_key(key_path[: depth + 1])} is not a section, so it has no keys."
            )
        section = subsection
    _forget(document, key_path)
    reader = _YamlReader(document, variables, lambda _: f"--set {shown_key}")
    section[key_path[-1]] = None
    if root is not None:
        reader.check_size(root, len(key_path))
        section[key_path[-1]] = reader.read(root, key_path)
    document.locations[key_path] = f"--set {shown_key}"


def _forget(document: ConfigDocument, key_path: KeyPath) -> None:
    """Remove the place, the references and the passwords of a key that an override replaces."""

    def is_replaced(key: KeyPath) -> bool:
        return key[: len(key_path)] == key_path

    document.locations = {key: place for key, place in document.locations.items() if not is_replaced(key)}
    document.references = {key: found for key, found in document.references.items() if not is_replaced(key)}
    document.plain_passwords = [key for key in document.plain_passwords if not is_replaced(key)]
