"""Finds the geometry of a family. It is built in, or another package registers it.

A package registers a geometry by an entry point in the group `renderers_adapter.geometry`. The name of the entry point
is the family, and its object is a subclass of `Geometry`.
"""

import difflib
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from .base import Geometry, GeometryError
from .kimi_k25 import KimiK25Geometry
from .qwen_vl import QwenVLGeometry

ENTRY_POINT_GROUP = "renderers_adapter.geometry"

_BUILT_IN: Mapping[str, type[Geometry]] = {geometry.family: geometry for geometry in (QwenVLGeometry, KimiK25Geometry)}


class UnknownFamily(GeometryError):
    """No geometry is registered for a family, so only the engine can count the placeholders of its images."""


def geometry_for(family: str, processor_config: Mapping[str, Any]) -> Geometry:
    """Return the geometry of a family for a checkpoint's image processor configuration.

    Raises:
        UnknownFamily: no geometry is registered for the family.
        GeometryError: a knob is missing or invalid.
    """
    return _geometry_class(family).from_processor_config(processor_config)


def known_families() -> tuple[str, ...]:
    """Return the names of all families that have a geometry."""
    return tuple(sorted({*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))}))


@lru_cache(maxsize=64)
def _geometry_class(family: str) -> type[Geometry]:
    if family in _BUILT_IN:
        return _BUILT_IN[family]
    for point in entry_points(group=ENTRY_POINT_GROUP, name=family):
        geometry_class = point.load()
        if not (
            isinstance(geometry_class, type)
            and issubclass(geometry_class, Geometry)
            and getattr(geometry_class, "family", None) == family
        ):
            raise GeometryError(
                f"entry point {point.value!r} of group {ENTRY_POINT_GROUP} must be a Geometry subclass with"
                f" family = {family!r}, but it is {geometry_class!r}"
            )
        return geometry_class
    known = known_families()
    nearest = difflib.get_close_matches(family, known, n=1, cutoff=0.8)
    raise UnknownFamily(
        f"no geometry is known for the family {family!r} (known: {', '.join(known)})."
        + (f" Did you mean {nearest[0]!r}?" if nearest else "")
        + " Without a geometry, the engine's own expansion of `content_parts` counts the placeholders."
        f" A package can add one with an entry point in the group {ENTRY_POINT_GROUP}."
    )
