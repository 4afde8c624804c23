"""Converts messages to tokens and back for each model family, and describes images by references instead of pixels.

The names of this package are imported at their first use, so that a trainer does not load a tokenizer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from renderers_adapter.adapter import RendererAdapter
    from renderers_adapter.descriptors import Sidecar, raw_mm_item
    from renderers_adapter.errors import AdapterError
    from renderers_adapter.geometry import geometry_for, layout_fingerprint
    from renderers_adapter.refs import RawMMRef, format_ref, parse_ref

_LAZY_EXPORTS = {
    "AdapterError": "renderers_adapter.errors",
    "RawMMRef": "renderers_adapter.refs",
    "RendererAdapter": "renderers_adapter.adapter",
    "Sidecar": "renderers_adapter.descriptors",
    "format_ref": "renderers_adapter.refs",
    "geometry_for": "renderers_adapter.geometry",
    "layout_fingerprint": "renderers_adapter.geometry",
    "parse_ref": "renderers_adapter.refs",
    "raw_mm_item": "renderers_adapter.descriptors",
}

__all__ = [
    "AdapterError",
    "RawMMRef",
    "RendererAdapter",
    "Sidecar",
    "format_ref",
    "geometry_for",
    "layout_fingerprint",
    "parse_ref",
    "raw_mm_item",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module 'renderers_adapter' has no attribute {name!r}")
    return getattr(import_module(_LAZY_EXPORTS[name]), name)
