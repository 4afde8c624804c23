"""Decodes an image to the pixels that the engine sees.

The engine turns an image upright by its EXIF or XMP orientation and takes the first frame. It puts transparency on
white, and converts the pixels to RGB. The trainer and the embedded engine get the same pixels from this module.
"""

import contextlib
from io import BytesIO

from PIL import Image, ImageOps

from rollout.images.errors import ImageError
from rollout.images.formats import detect_format


def load_pixels(data: bytes) -> Image.Image:
    """Return the image as the engine sees it: upright, first frame, transparency on white, RGB.

    Raises:
        ImageError: the format is not accepted, or the image cannot be decoded.
    """
    try:
        image: Image.Image = open_lazily(data)
        # Load the image first, because Pillow reports damaged pixels only the first time.
        image.load()
        image = turn_upright(image)  # the same name, so that the image before turning is freed
        return _rgb_on_white(image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow may raise any error for damaged input
        raise decode_error(error) from error


def open_lazily(data: bytes) -> Image.Image:
    """Open an image with Pillow, without decoding its pixels. Raises Pillow's own errors, and ImageError."""
    return Image.open(BytesIO(data), formats=(detect_format(data).pillow_name,))


def turn_upright(image: Image.Image) -> Image.Image:
    """Return the image turned by its orientation; if its metadata cannot be read, unchanged, as in the engine."""
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def decode_error(error: Exception) -> ImageError:
    """Return the ImageError for an error that Pillow raised."""
    return ImageError(f"the image cannot be decoded: {type(error).__name__}: {str(error)[:200]}")


def _rgb_on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba_image = image if image.mode == "RGBA" else image.convert("RGBA")
        background = Image.new("RGB", rgba_image.size, (255, 255, 255))
        background.paste(rgba_image, mask=rgba_image.getchannel("A"))
        return background
    return image.convert("RGB")
