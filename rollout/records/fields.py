"""Removes fields from the decoded map of a record, and checks them against `rollout.records.bounds`.

Every function raises RecordError if a required field is missing, has a wrong type, or is out of bounds.
"""

from typing import Any, NoReturn, TypeVar

import numpy as np

from renderers_adapter.descriptors import PROCESSED_KEYS
from rollout.records.bounds import MAX_COUNT
from rollout.records.kinds import RecordError

_T = TypeVar("_T")
_PLAIN_TYPES = frozenset({str, int, float, bool, type(None)})

Wire = dict[str, Any]
"""The decoded map of a record. The functions of this module remove from it the fields that they return."""


def pop_field(wire: Wire, key: str, expected_type: type[_T]) -> _T:
    """Remove and return a required field."""
    value = wire.pop(key, None)
    if type(value) is expected_type:
        return value
    raise _wrong_type_error(key, value, expected_type)


def pop_optional_field(wire: Wire, key: str, expected_type: type[_T]) -> _T | None:
    """Remove and return a field; None if it is missing."""
    value = wire.pop(key, None)
    if value is None or type(value) is expected_type:
        return value
    raise _wrong_type_error(key, value, expected_type)


def pop_integer(wire: Wire, key: str, low: int = 0, high: int = MAX_COUNT) -> int:
    """Remove and return an integer from `low` to `high`."""
    value = wire.pop(key, None)
    if type(value) is not int:
        raise _wrong_type_error(key, value, int)
    if not low <= value <= high:
        refuse_number(key, value, low, high)
    return value


def pop_optional_integer(wire: Wire, key: str, low: int = 0, high: int = MAX_COUNT) -> int | None:
    """Remove and return an integer from `low` to `high`; None if it is missing."""
    return pop_integer(wire, key, low, high) if wire.get(key) is not None else wire.pop(key, None)


def pop_bytes(wire: Wire, key: str, length: int) -> bytes:
    """Remove and return bytes of this length."""
    value = pop_field(wire, key, bytes)
    if len(value) != length:
        raise RecordError(f"{key!r} has {len(value)} bytes; expected {length}.")
    return value


def pop_array(wire: Wire, key: str, dtype: type[np.generic]) -> Any:
    """Remove and return a one-dimensional array of this type."""
    value: Any = wire.pop(key, None)
    if type(value) is not np.ndarray:
        raise _wrong_type_error(key, value, np.ndarray)
    if value.dtype != dtype or value.ndim != 1:
        raise RecordError(
            f"{key!r} is a {value.dtype} array of the shape {value.shape}; expected one dimension of {dtype.__name__}."
        )
    return value


def pop_token_ids(wire: Wire, key: str) -> Any:
    """Remove and return an array of token ids."""
    value = pop_array(wire, key, np.int32)
    if len(value) and (lowest := value.item(value.argmin())) < 0:  # faster than min(); this runs for every step
        raise RecordError(f"{key!r} has the token id {lowest}; expected 0 or more.")
    return value


def require_plain(value: Any, name: str) -> None:
    """Check that a value is plain data as in JSON, at any depth. The codec also allows arrays and bytes."""
    value_type = type(value)
    if value_type in _PLAIN_TYPES:
        return
    if value_type is not dict and value_type is not list:
        raise RecordError(f"{name} contains a value of type {value_type.__name__}; expected plain data, as in JSON.")
    for inner in value.values() if value_type is dict else value:
        require_plain(inner, name)


def require_no_pixels(value: Any, name: str) -> None:
    """Check that no key in plain data, at any depth, is one that processors use for pixels."""
    if type(value) is dict:
        if not PROCESSED_KEYS.isdisjoint(value):
            raise RecordError(
                f"{name} has {', '.join(sorted(PROCESSED_KEYS & value.keys()))}; a record must not contain pixels."
            )
        value = value.values()
    elif type(value) is not list:
        return
    for inner in value:
        require_no_pixels(inner, name)


def refuse_number(name: str, value: float, low: float, high: float) -> NoReturn:
    """Raise the RecordError for a number that is not between `low` and `high`."""
    raise RecordError(f"{name!r} is {value}; expected {low} to {high}.")


def _wrong_type_error(key: str, value: Any, expected_type: type) -> RecordError:
    if value is None:
        return RecordError(f"the record has no field {key!r}.")
    return RecordError(f"{key!r} is of type {type(value).__name__}; expected {expected_type.__name__}.")
