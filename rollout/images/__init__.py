"""Images of a run: prepared in place in messages, stored once by content, loaded as the engine loads them.

report = prepare_images(messages, ImagePolicy(mode="offload", directory=run_directory / "assets" / "images"))
"""

from .errors import AssetError, ImageError, ImageStoreError
from .inspect import ImageInfo, inspect_image
from .pixels import load_pixels
from .policy import ImageLimits, ImagePolicy
from .prepare import PreparedImage, PrepareReport, prepare_images, prepare_images_async
from .sources import decode_data_uri
from .store import ImageStore, read_asset

__all__ = [
    "AssetError",
    "ImageError",
    "ImageInfo",
    "ImageLimits",
    "ImagePolicy",
    "ImageStore",
    "ImageStoreError",
    "PrepareReport",
    "PreparedImage",
    "decode_data_uri",
    "inspect_image",
    "load_pixels",
    "prepare_images",
    "prepare_images_async",
    "read_asset",
]
