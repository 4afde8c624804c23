"""Texts of users' code on their way to files, records and stdout, which take no half of a surrogate pair."""

from collections.abc import Mapping
from typing import Any

import orjson


def escape_surrogates(text: str) -> str:
    """Return a text that every file and every JSON parser takes: a lone surrogate is written as an escape."""
    # Called on the class, because a subclass of str may be anything. What comes back is a plain str.
    return str.encode(text, "utf-8", "backslashreplace").decode()


def is_well_formed(text: str) -> bool:
    """Whether it has no lone surrogate."""
    return escape_surrogates(text) == text


def dump_json(value: Any, *, option: int | None = None) -> bytes:
    """Write plain data as JSON, whatever its texts hold.

    Raises:
        TypeError: it is not plain data.
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
