"""Encodes and decodes the fields about conversations: echoes, constraints, unreceived turns, and the kinds of roots.

The functions that decode remove the field from the map. They raise RecordError if its value is not valid.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from rollout.records.bounds import MAX_COUNT
from rollout.records.conversations import Echo, RootKind
from rollout.records.fields import Wire, pop_optional_field
from rollout.records.kinds import RecordError

_MARKED_KINDS = tuple(kind for kind in RootKind if kind is not RootKind.MAIN)
"""The kinds that are sent. A root without a kind is a main root."""


def pop_echo(wire: Wire) -> Echo | None:
    """Return how the earlier answers came back in a turn's request; None if the field is missing."""
    name = pop_optional_field(wire, "echo", str)
    return None if name is None else Echo(name)


def pop_constrained(wire: Wire) -> bool:
    """Return whether the request of a turn changed the distribution of its answer; False if the field is missing."""
    return pop_optional_field(wire, "constrained", bool) or False


def encode_unreceived_turns(turns: Iterable[int]) -> list[int] | None:
    """Return the turns in rising order; None if there are none."""
    return sorted(turns) or None


def pop_unreceived_turns(wire: Wire) -> tuple[int, ...]:
    """Return the turns whose answers were not received."""
    return _require_rising("unreceived_turns", pop_optional_field(wire, "unreceived_turns", list) or [])


def encode_root_kinds(root_kinds: Mapping[int, RootKind]) -> dict[str, list[int]] | None:
    """Return the roots of each kind in rising order, without main roots; None if there are no others."""
    roots = {kind.value: sorted(root for root, found in root_kinds.items() if found is kind) for kind in _MARKED_KINDS}
    return {kind: indices for kind, indices in roots.items() if indices} or None


def pop_root_kinds(wire: Wire) -> dict[int, RootKind]:
    """Return the kinds of the roots that are not main roots, by the index of the root's node."""
    root_kinds: dict[int, RootKind] = {}
    for name, indices in (pop_optional_field(wire, "root_kinds", dict) or {}).items():
        if name not in _MARKED_KINDS:
            raise RecordError(f"'root_kinds' has the kind {name!r}; expected one of {', '.join(_MARKED_KINDS)}.")
        roots = _require_rising(f"root_kinds.{name}", indices)
        if twice := root_kinds.keys() & roots:
            raise RecordError(f"'root_kinds' has two kinds for the root {min(twice)}; expected one.")
        root_kinds |= dict.fromkeys(roots, RootKind(name))
    return root_kinds


def _require_rising(name: str, numbers: Any) -> tuple[int, ...]:
    """Return a list of numbers as a tuple. Raises RecordError unless they are rising integers from 0 to MAX_COUNT."""
    if type(numbers) is not list or any(type(number) is not int or not 0 <= number <= MAX_COUNT for number in numbers):
        shown = numbers[:4] if type(numbers) is list else numbers
        raise RecordError(f"{name!r} begins with {shown!r}; expected a list of integers from 0 to {MAX_COUNT}.")
    if any(number >= following for number, following in pairwise(numbers)):
        raise RecordError(f"the numbers of {name!r} must rise, but one is out of order or occurs twice.")
    return tuple(numbers)
