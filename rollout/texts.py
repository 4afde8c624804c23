"""Escapes what files, records, stdout or terminals cannot take: lone surrogates (halves of characters) and controls."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import orjson

_TERMINAL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
"""A sequence with which a program moves the cursor, sets colours or names a window."""
_CONTROL_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def escape_surrogates(text: str) -> str:
    """Return a plain str in which lone surrogates are escaped, so that files and JSON parsers accept it."""
    # Not text.encode(…), because a subclass of str may override `encode`.
    return str.encode(text, "utf-8", "backslashreplace").decode()


def escape_controls(text: str) -> str:
    """Return a text that a terminal shows as it is: without colours, and with other control characters escaped."""
    text = _TERMINAL_SEQUENCE.sub("", text.replace("\r\n", "\n"))
    return text if text.isprintable() else "".join(map(_escape_control, text))


def _escape_control(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _CONTROL_CATEGORIES:
        return character
    return ascii(character)[1:-1]


def is_well_formed(text: str) -> bool:
    """Whether a string has no lone surrogate."""
    return escape_surrogates(text) == text


def dump_json(value: Any, *, option: int | None = None) -> bytes:
    """Return plain data as JSON. Lone surrogates in its strings are escaped.

    Raises:
        TypeError: the value is not plain data.
    """
    try:
        return orjson.dumps(value, option=option)
    except TypeError:
        return orjson.dumps(_with_escaped_texts(value), option=option)


def _with_escaped_texts(value: Any) -> Any:
    if isinstance(value, str):
        return escape_surrogates(value)
    if isinstance(value, Mapping):
        return {_with_escaped_texts(key): _with_escaped_texts(inner) for key, inner in value.items()}
    return [_with_escaped_texts(inner) for inner in value] if isinstance(value, list | tuple) else value
