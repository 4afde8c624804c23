"""Images of a run: prepared in place in messages, stored once by content, loaded as the engine loads them."""

from .errors import AssetError, ImageError, ImageStoreError
from .pixels import load_pixels
from .policy import ImageLimits, ImagePolicy

__all__ = ["AssetError", "ImageError", "ImageLimits", "ImagePolicy", "ImageStoreError", "load_pixels"]
