"""Describes why a value of a configuration, or a sampling key of a turn, is not valid."""

import difflib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel

from rollout.records.wrong_types import show_value
from transports.redaction import HIDDEN, SECRET_NAME, hide_passwords

KeyPath = tuple[str | int, ...]
"""The keys that lead to a value; for an item of a list, its index."""

_LIST_TYPES = frozenset(("list_type", "tuple_type", "set_type", "frozen_set_type"))
_MAPPING_TYPES = frozenset(("model_type", "model_attributes_type"))
_MAX_SHOWN = 300
_QUOTED = re.compile(r"""(['"])(.*?)\1""")
_IN_BRACES = re.compile(r"(\{)(.+?)\}")
_TAG = re.compile(r"<\w+>")
"""Matches the tags of unions in our models."""
_SHELL_SYNTAX = re.compile(r"[|&;<>`]|\$[({A-Za-z_]")
QUEUE_URL_ERROR = "queue_url"
"""The type of an error about the URL of a queue. If its message quotes anything, the first quote is the mistake."""


def describe_problem(model: type[BaseModel], problem: Mapping[str, Any], written: Any) -> str:
    """Return what is wrong with a value; the result does not name the key.

    Args:
        model: the model of the section.
        problem: one of the errors of a ValidationError.
        written: the value as the user wrote it; its variables are not replaced.
    """
    location = key_of(problem)
    if problem["type"] == "extra_forbidden":
        return f"unknown key{suggest_name(str(location[-1]), _field_names_at(model, location[:-1]))}"
    if problem["type"] == "missing":
        description = _description_at(model, location)
        return f"this key is required; expected {description}" if description else "this key is required"
    if problem["type"] == "secret":
        return str(problem["msg"])
    found = show_written(written, location)
    if problem["type"] in _LIST_TYPES:
        advice = f"; write {location[-1]}: {_as_list(location[-1], written)}" if isinstance(written, str) else ""
        return f"expected a list, found {found}{advice}"
    if problem["type"] == "string_type" and (text := _text_in_braces(written)) is not None:
        return f'without quotes, YAML reads {text} as a key and not as a text; write it in quotes: "{text}"'
    if (expected := _expected_form(model, problem)) is not None:
        return f"expected {expected}, found {found}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == QUEUE_URL_ERROR and (mistake := _QUOTED.search(message)) is not None:
        if written == problem["input"] or mistake[2] in str(written):
            return shorten(message.removesuffix("."))
        message = "with its variables replaced, this is not the URL of a queue"  # a variable contains the mistake
    if isinstance(problem["input"], str) and problem["input"]:  # an environment's message may contain the value
        message = message.replace(problem["input"], hide_passwords(str(written)))
    message = message.removesuffix(".")
    is_complete = problem["type"] == "value_error" and (not location or _names_value(message, written))
    return message if is_complete else f"{message}, found {found}"


def key_of(problem: Mapping[str, Any]) -> KeyPath:
    """Return the key of an error of a ValidationError. Pydantic adds the tag of a union, which is no key."""
    return tuple(part for part in problem["loc"] if not (isinstance(part, str) and _TAG.fullmatch(part)))


def show_written(value: Any, key_path: Sequence[str | int] = ()) -> str:
    """Return a value of a configuration for a message, shortened and with its secrets hidden."""
    return show_value(_without_secrets(value, str(key_path[-1]) if key_path else ""))


def show_key(key_path: Sequence[str | int]) -> str:
    """Return a key for a message, with dots between its parts."""
    return shorten(".".join(hide_passwords(str(part)) for part in key_path))


def show_override(override: str) -> str:
    """Return a `KEY=VALUE` override for a message, with its secrets hidden."""
    key, equals, value = override.partition("=")
    if ":" in key or "@" in key:  # the user probably wrote a URL and forgot its key
        return HIDDEN
    if not equals:
        return hide_passwords(override)
    return f"{key}={HIDDEN if SECRET_NAME.fullmatch(key) and '${' not in value else hide_passwords(value)}"


def shorten(text: str) -> str:
    """Return a text; if it is long, without its middle."""
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN // 2]} … {text[-_MAX_SHOWN // 2 :]}"


def _as_list(key: str | int, written: str) -> str:
    """Return the list to write in place of a text. A command is split into its arguments, as a shell does it."""
    items = [written]
    if key == "command":
        if _SHELL_SYNTAX.search(written):
            items = ["sh", "-c", written]
        else:
            with suppress(ValueError):  # a quote is not closed
                items = shlex.split(written)
    return json.dumps([shorten(hide_passwords(item)) for item in items], ensure_ascii=False)


def _text_in_braces(written: Any) -> str | None:
    """Return the text that the user meant by a mapping of YAML with one key and no value, such as {task.question}."""
    if isinstance(written, Mapping) and len(written) == 1:
        ((key, value),) = written.items()
        return f"{{{hide_passwords(str(key))}}}" if value is None else None
    return None


def _expected_form(model: type[BaseModel], problem: Mapping[str, Any]) -> str | None:
    """Return what a key expects, if this is clearer than the message of pydantic."""
    location, kind = key_of(problem), problem["type"]
    name = str(location[-1]) if location else ""
    if kind == "int_type" and name.endswith("_bytes"):
        return "a whole number of bytes, such as 500000000"
    if kind == "float_type" and name.endswith("timeout"):
        return "seconds, such as 300"
    if kind == "dict_type":
        return f"keys and values, as in {name}: {{NAME: …}}"
    if kind in _MAPPING_TYPES:
        keys = _field_names_at(model, location)
        return f"keys and values, as in {name}: {{{keys[0]}: …}}; the keys are {', '.join(keys)}" if keys else None
    return None


def _names_value(message: str, written: Any) -> bool:
    """Whether a message quotes the value, or the part of it that is wrong."""
    quoted = [match[2] for pattern in (_QUOTED, _IN_BRACES) for match in pattern.finditer(message)]
    return any(part and part in str(written) for part in quoted)


def _without_secrets(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return {hide_passwords(str(key)): _without_secrets(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_without_secrets(inner, name) for inner in value]
    if value is not None and SECRET_NAME.fullmatch(name):
        return HIDDEN
    return hide_passwords(value) if isinstance(value, str) else value


def suggest_name(name: str, valid_names: Sequence[str]) -> str:
    """Return the end of an error text that suggests the nearest valid name, or lists all valid names."""
    closest = difflib.get_close_matches(name[:_MAX_SHOWN], valid_names, n=1, cutoff=0.5)
    if closest:
        return f"; did you mean {closest[0]!r}?"
    return f"; the valid names are {', '.join(valid_names)}" if valid_names else ""


def _field_names_at(model: type[BaseModel], key_path: Sequence[str | int]) -> list[str]:
    for part in key_path:
        inner = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _description_at(model: type[BaseModel], key_path: Sequence[str | int]) -> str | None:
    """Return the description of a key of the model itself."""
    field = model.model_fields.get(str(key_path[0])) if len(key_path) == 1 else None
    return None if field is None or field.description is None else field.description.removesuffix(".")
