"""Which geometry belongs to which family: the built-in ones, and those that other distributions register.

A distribution adds a family with an entry point in the group `renderers_adapter.geometry`: the name is the family, the
object a `Geometry` subclass.
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
    """No geometry is registered for a family; only the engine knows how many placeholders its images take."""


def geometry_for(family: str, processor_config: Mapping[str, Any]) -> Geometry:
    """The geometry of a family under a checkpoint's image processor configuration.

    Raises:
        UnknownFamily: nobody registered the family.
        GeometryError: the configuration lacks a knob.
    """
    return _geometry_class(family).from_processor_config(processor_config)


def known_families() -> tuple[str, ...]:
    """Every family that a geometry is registered for."""
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
    nearest = difflib.get_close_matches(family, known, n=1, cutoff=0.8)  # no other family
    raise UnknownFamily(
        f"no geometry is known for the family {family!r} (known: {', '.join(known)})"
        + (f"; did you mean {nearest[0]!r}?" if nearest else "")
        + f". Without one, placeholder counts come from the engine's own expansion of `content_parts`;"
        f" a distribution can add one through the entry point group {ENTRY_POINT_GROUP}"
    )
