"""Changes the schema of a tool's arguments into the form that chat templates read.

pydantic describes an inner model or an enum once, in `$defs`, and refers to it with `$ref`. Several chat templates
write only the type of a parameter, but a reference has no type. So each reference is replaced by its definition.
"""

from collections.abc import Mapping
from typing import Any

_DEFINITIONS = "$defs"
_REFERENCE = "$ref"
_VALUES = ("default", "enum", "const", "examples")
"""The keys of a schema that contain values, not schemas."""
_PREFIX = f"#/{_DEFINITIONS}/"


class _DefinitionContainsItself(Exception):
    """A definition contains a reference to itself, so its references cannot be replaced."""


def inline_definitions(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with each reference replaced by its definition. Titles are removed, because they repeat names.

    If a definition contains itself, return the schema unchanged.
    """
    definitions = schema.get(_DEFINITIONS, {})
    try:
        return _inline({key: value for key, value in schema.items() if key != _DEFINITIONS}, definitions, ())
    except _DefinitionContainsItself:
        return dict(schema)


def _inline(schema: Mapping[str, Any], definitions: Mapping[str, Any], inside: tuple[str, ...]) -> dict[str, Any]:
    name = schema.get(_REFERENCE, "").removeprefix(_PREFIX)
    if name in inside:
        raise _DefinitionContainsItself
    inlined = _inline(definitions[name], definitions, (*inside, name)) if name else {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):  # the keys are names, and one may be `title`
            inlined[key] = {inner: _inline_value(each, definitions, inside) for inner, each in value.items()}
        elif key in _VALUES:
            inlined[key] = value
        elif key not in (_REFERENCE, "title"):
            inlined[key] = _inline_value(value, definitions, inside)
    return inlined


def _inline_value(value: Any, definitions: Mapping[str, Any], inside: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return _inline(value, definitions, inside)
    if isinstance(value, list):
        return [_inline_value(each, definitions, inside) for each in value]
    return value
