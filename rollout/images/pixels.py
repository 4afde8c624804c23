"""Encoded bytes to the pixels that the engine sees.

The engine turns an image upright by its EXIF or XMP orientation, takes the first frame, puts transparency on white and
gives RGB to the processor. The trainer and the embedded engine use the same function, so that both sides of a run start
from the same pixels.
"""

import contextlib
from io import BytesIO

from PIL import Image, ImageOps

from rollout.images.errors import ImageError
from rollout.images.formats import detect_format


def load_pixels(data: bytes) -> Image.Image:
    """The image as the engine sees it: upright, first frame, transparency on white, RGB.

    Raises:
        ImageError: the bytes are not one of the accepted formats, or cannot be decoded.
    """
    try:
        image: Image.Image = open_lazily(data)
        # Before anything else: Pillow reports damaged pixels once, and takes them as they are when asked again.
        image.load()
        image = turn_upright(image)  # the stored image is free from here on
        return _rgb_on_white(image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged input
        raise decode_error(error) from error


def open_lazily(data: bytes) -> Image.Image:
    """Pillow's view of the header; no pixel is decoded yet. Raises whatever Pillow raises."""
    return Image.open(BytesIO(data), formats=(detect_format(data).pillow_name,))


def turn_upright(image: Image.Image) -> Image.Image:
    """The image turned by its orientation; metadata that cannot be read leaves it as it is, as in the engine."""
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def decode_error(error: Exception) -> ImageError:
    """The ImageError for an error that Pillow raised."""
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
