"""Reads and writes the arguments of tool calls as JSON text, which is the form of chat APIs.

The canonical form of a message and the templates of models have the arguments as an object.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from rollout.value_limits import is_within_bounds

_LONG_NUMBER = re.compile(r"[0-9]{19}")
"""`orjson` reads a whole number of more than 64 bits as a float, so numbers of this length are also read by `json`."""


def write_arguments(arguments: Mapping[str, Any]) -> str:
    """Return arguments as compact JSON text, in their own order."""
    return orjson.dumps(dict(arguments)).decode()


def read_arguments(text: str) -> dict[str, Any] | None:
    """Return the arguments in a text; no text means no arguments.

    The result is None if the text is not a JSON object, or if a record cannot hold the object: it is too large or too
    deep, or has a whole number of more than 64 bits.
    """
    if not text.strip():
        return {}
    try:
        arguments = orjson.loads(text)
        if _LONG_NUMBER.search(text):
            orjson.dumps(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) and is_within_bounds(arguments) else None
