"""Limits the size of a value from a user's code. The size is checked before other code visits all parts of the value.

A few dicts that contain each other several times look like billions of values to a search for images, a JSON writer or
a template. So a value that can be reached in several ways is counted each time, and the count stops at a limit. A value
within the limits is small enough for code that visits all of its parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import islice
from typing import Any

MAX_VALUES = 1 << 17
"""A quarter of the limit for a record on a queue. Counting this many values blocks the event loop only briefly."""
MAX_DEPTH = 48
"""Lower than the limit for a record on a queue, because a record has some levels around the value."""
MAX_CHARACTERS = 16 << 20
"""The limit for the characters in all strings together."""

_LEAF_TYPES = frozenset((int, float, bool, type(None), bytes))


class OutOfBoundsError(ValueError):
    """A value has more values or levels than the limits allow."""


class TooMuchTextError(OutOfBoundsError):
    """A value has more text than the context of any model."""


class Countable(ABC):
    """A value that chooses which of its parts a `ValueCounter` counts."""

    @abstractmethod
    def counted_values(self) -> Iterable[Any]:
        """Yield the values to count, one level below this value."""


class ValueCounter:
    """Counts the values and the characters in all values that are added to it."""

    def __init__(self) -> None:
        self._values = 0
        self._characters = 0

    def add(self, value: object) -> None:
        """Count a value and everything in it.

        Raises:
            OutOfBoundsError: the value has too many levels, or all added values together are too large.
        """
        level: list[Any] = [value]
        for _ in range(MAX_DEPTH + 1):
            next_level: list[Any] = []
            for found in level:
                kind = type(found)
                if kind is str:
                    self._characters += len(found)
                elif kind is list or kind is tuple:
                    self._require_room(len(next_level) + len(found))
                    next_level += found
                elif kind is dict:
                    self._require_room(len(next_level) + len(found))
                    next_level += found.values()
                    self._characters += sum(len(key) for key in found if type(key) is str)
                elif kind not in _LEAF_TYPES:
                    children = list(islice(_children(found), MAX_VALUES + 1))
                    self._require_room(len(next_level) + len(children))
                    next_level += children
            if self._characters > MAX_CHARACTERS:
                raise TooMuchTextError(f"holds more than {MAX_CHARACTERS:,} characters of text")
            if not next_level:
                return
            self._values += len(next_level)
            level = next_level
        raise OutOfBoundsError(f"has more than {MAX_DEPTH} levels, or contains itself")

    def _require_room(self, count: int) -> None:
        if self._values + count > MAX_VALUES:
            raise OutOfBoundsError(
                f"holds more than {MAX_VALUES:,} values; a value that occurs several times is counted each time"
            )


def _children(container: Any) -> Iterable[Any]:
    """Yield the values in an object that is not a plain dict, list or tuple; for a subclass of str, its plain str."""
    if isinstance(container, str):
        yield str.__str__(container)
    elif isinstance(container, Countable):
        yield from container.counted_values()
    elif isinstance(container, Mapping):
        for item in container.items():
            yield from item
    elif isinstance(container, Sequence):
        if not isinstance(container, bytes | bytearray | memoryview):
            yield from container
    elif is_dataclass(container) and not isinstance(container, type):
        yield from (getattr(container, entry.name, None) for entry in fields(container))
    elif isinstance(container, Enum):
        yield container.value
    else:  # a part of a message may be an object with these attributes
        yield from (getattr(container, name, None) for name in ("text", "thinking", "content"))


def is_within_bounds(value: object) -> bool:
    """Whether a value is within the limits."""
    try:
        ValueCounter().add(value)
    except OutOfBoundsError:
        return False
    return True
