"""Computes the number of an image's placeholder tokens from its size and the checkpoint's processor configuration."""

from .base import Geometry, GeometryError, ImageLayout, layout_fingerprint
from .registry import UnknownFamily, geometry_for, known_families

__all__ = [
    "Geometry",
    "GeometryError",
    "ImageLayout",
    "UnknownFamily",
    "geometry_for",
    "known_families",
    "layout_fingerprint",
]
