"""Makes arguments for a tool from its JSON schema, with values that clients like to write in another form."""

from collections.abc import Mapping
from typing import Any

from rollout.doctor.agent.tool_choice import COMMAND_KEYS, schema_of

_MAX_DEPTH = 8
_WORD = "café"
_PATH_NAMES = ("path", "file", "dir", "directory", "folder", "cwd", "workdir")
_OPTIONAL_TEXTS = frozenset({"description", "reason", "explanation", "title"})
"""Optional arguments that only describe a call. One is added so that a call has two keys whose order can change."""


def make_arguments(tool: Mapping[str, Any], number: int, command: str | None = None) -> dict[str, Any]:
    """Return the arguments of a call: the required ones, in the reversed order of their names.

    Args:
        tool: the tool, in the form of chat completions.
        number: is in the values, so that two calls differ.
        command: the shell command of a tool that takes one; None: `echo` with a word that is not ASCII.
    """
    schema = schema_of(tool)
    maker = _ValueMaker(schema, number, command or f"echo {_WORD}-{number}")
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    names = [str(name) for name in schema.get("required") or () if name in properties]
    names += [name for name in properties if str(name).lower() in COMMAND_KEYS and name not in names]
    if len(names) == 1:
        names += [name for name in properties if name in _OPTIONAL_TEXTS and name not in names][:1]
    if not names:
        names = [name for name in properties if name in _OPTIONAL_TEXTS][:1]
    return {name: maker.value(properties[name], name, 0) for name in sorted(names, reverse=True)}


class _ValueMaker:
    """Makes values of the arguments of one call."""

    def __init__(self, root: Mapping[str, Any], number: int, command: str) -> None:
        self._root = root
        self._number = number
        self._command = command

    def value(self, schema: Any, name: str, depth: int) -> Any:
        """Return a value that a schema allows."""
        schema = self._resolved(schema, depth)
        for key in ("const", "default"):
            if key in schema and schema[key] is not None:
                return schema[key]
        if schema.get("enum"):
            return schema["enum"][0]
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        match kind:
            case "boolean":
                return False
            case "integer":
                return int(max(schema.get("minimum", 1), 1))
            case "number":
                return float(max(schema.get("minimum", 1.0), 1.0))
            case "null":
                return None
            case "array":
                return self._array(schema, name, depth)
            case "object":
                return self._object(schema, depth)
        return self._text(name)

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        if name.lower() in COMMAND_KEYS:
            return ["sh", "-c", self._command]
        if depth >= _MAX_DEPTH or not (schema.get("minItems") or depth == 0):
            return []
        return [self.value(schema.get("items"), name, depth + 1)] * max(1, int(schema.get("minItems", 1)))

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        if depth >= _MAX_DEPTH or not isinstance(properties, Mapping):
            return {}
        names = [name for name in schema.get("required") or () if name in properties]
        return {name: self.value(properties[name], str(name), depth + 1) for name in sorted(names, reverse=True)}

    def _text(self, name: str) -> str:
        lower = name.lower()
        if lower in COMMAND_KEYS:
            return self._command
        if any(part in lower for part in _PATH_NAMES):
            return "."
        return f"{_WORD} {self._number}"

    def _resolved(self, schema: Any, depth: int) -> Mapping[str, Any]:
        """Return a schema without a reference and without alternatives; the first alternative counts."""
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, Mapping):
                return {}
            reference = schema.get("$ref")
            if isinstance(reference, str) and reference.startswith("#/"):
                schema = self._look_up(reference)
                continue
            options = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
            if not isinstance(options, list) or not options or "type" in schema:
                return schema
            schema = next((o for o in options if isinstance(o, Mapping) and o.get("type") != "null"), options[0])
        return {}

    def _look_up(self, reference: str) -> Any:
        found: Any = self._root
        for part in reference.removeprefix("#/").split("/"):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found
