"""Describes values in error texts: by their type, or by a short form of their content."""

import inspect
import reprlib

from rollout.value_limits import is_within_bounds

_MAX_SHOWN_CHARS = 200


def describe_wrong_type(value: object) -> str:
    """Return the type of a value with an article, such as `a float`. For a coroutine, say which call lacks `await`.

    A coroutine is also closed; otherwise Python would warn that it was never awaited.
    """
    if value is None:
        return "None"
    if inspect.iscoroutine(value):
        value.close()
        return f"a coroutine (write `await` before {value.__qualname__}(…))"
    name = type(value).__name__
    return f"{'an' if name[:1] in 'aeiouAEIO' else 'a'} {name}"


def show_value(value: object) -> str:
    """Return a shortened `repr` of a value, because the `repr` of a few nested dicts can be gigabytes long."""
    if not is_within_bounds(value):
        return describe_wrong_type(value)
    try:
        text = _SHORT_REPR.repr(value)
    except Exception:  # noqa: BLE001 - repr() fails for integers of more than 4,300 digits, and a class can raise any error
        return describe_wrong_type(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"


_SHORT_REPR = reprlib.Repr()
_SHORT_REPR.maxlevel, _SHORT_REPR.maxdict, _SHORT_REPR.maxlist, _SHORT_REPR.maxtuple = 3, 4, 4, 4
_SHORT_REPR.maxstring = _SHORT_REPR.maxother = _SHORT_REPR.maxlong = _MAX_SHOWN_CHARS
