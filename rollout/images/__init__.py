"""Prepares the images in messages, stores each image once by the hash of its bytes, and loads the pixels.

report = prepare_images(messages, ImagePolicy(mode="offload", directory=run_directory / "assets" / "images"))
"""

from rollout.images.cache import ImageAsset
from rollout.images.decoding import decoded_image
from rollout.images.errors import AssetError, ImageError, ImageMemoryError, ImageStoreError
from rollout.images.inspect import ImageInfo, inspect_image
from rollout.images.pixels import load_pixels
from rollout.images.policy import ImageLimits, ImagePolicy
from rollout.images.prepare import PreparedImage, PrepareReport, prepare_images, prepare_images_async
from rollout.images.sources import decode_data_uri
from rollout.images.store import ImageStore, read_asset

__all__ = [
    "AssetError",
    "ImageAsset",
    "ImageError",
    "ImageInfo",
    "ImageLimits",
    "ImageMemoryError",
    "ImagePolicy",
    "ImageStore",
    "ImageStoreError",
    "PrepareReport",
    "PreparedImage",
    "decode_data_uri",
    "decoded_image",
    "inspect_image",
    "load_pixels",
    "prepare_images",
    "prepare_images_async",
    "read_asset",
]
