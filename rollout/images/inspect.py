"""Reads the format, size, frames and transparency of an image from its header, and checks the limits."""

from dataclasses import dataclass, replace

from PIL import Image

from renderers_adapter.decoding_memory import decoding_bytes
from rollout.api_keys import contains_key
from rollout.images.container_format import count_frames
from rollout.images.errors import ImageError
from rollout.images.formats import JPEG, ImageFormat, detect_format
from rollout.images.jpeg import read_jpeg
from rollout.images.pixels import decode_error, load_pixels, open_lazily, turn_upright
from rollout.images.policy import ImageLimits, describe_too_many_bytes, describe_too_many_pixels

# An image with more pixels than the first number, and more pixels per byte than the second, is a decompression bomb.
_BOMB_PIXELS = 1 << 23
_BOMB_PIXELS_PER_BYTE = 2_000


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """The properties of an encoded image, as its header shows them.

    Attributes:
        format: the file format.
        width: the width of the displayed image in pixels, after the orientation in its metadata is applied.
        height: the height of the displayed image in pixels.
        frames: the number of frames; only the first frame is used.
        has_alpha: whether the image has transparency.
        proven: whether the header alone proves that the pixels can be decoded.
        decoding_bytes: the maximum memory that decoding needs, in bytes.
    """

    format: ImageFormat
    width: int
    height: int
    frames: int
    has_alpha: bool
    proven: bool
    decoding_bytes: int


_DEFAULT_LIMITS = ImageLimits()


def inspect_image(data: bytes, limits: ImageLimits = _DEFAULT_LIMITS) -> ImageInfo:
    """Read and check the header and the structure of an image, without decoding pixels.

    Raises:
        ImageError: the format is not accepted, or the image is incomplete, is two files in one, or is over a limit.
    """
    if len(data) > limits.max_bytes:
        raise ImageError(f"the image has {describe_too_many_bytes(len(data), limits.max_bytes)}")
    if contains_key(data):
        raise ImageError("the image contains the API key of an endpoint, such as in its metadata; save it without them")
    image_format = detect_format(data)
    if image_format is JPEG:
        jpeg = read_jpeg(data)
        check_size(jpeg.width, jpeg.height, len(data), limits)
        if jpeg.proven:
            memory = decoding_bytes(
                data, image_format="JPEG", mode="RGB", pixels=jpeg.width * jpeg.height, transparency=False
            )
            return ImageInfo(JPEG, jpeg.width, jpeg.height, 1, has_alpha=False, proven=True, decoding_bytes=memory)
        frames = 1
    else:
        frames = count_frames(data, image_format)
    try:
        image = open_lazily(data)
        check_size(image.width, image.height, len(data), limits)
        width, height = _displayed_size(image)
        check_depth(image.mode)
        has_alpha = image.has_transparency_data
        memory = pillow_decoding_bytes(image, data)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow may raise any error for damaged input
        raise decode_error(error) from error
    return ImageInfo(image_format, width, height, frames, has_alpha, proven=False, decoding_bytes=memory)


def confirm_decodable(data: bytes, info: ImageInfo) -> ImageInfo:
    """Check that an image can be decoded; return its info with the decoded size.

    The image is decoded once, unless its header already proves that this is possible.

    Raises:
        ImageError: the image cannot be decoded.
    """
    if info.proven:
        return info
    if info.format is JPEG:
        _decode_at_low_resolution(data)
        return info
    width, height = load_pixels(data).size
    return replace(info, width=width, height=height)


def _decode_at_low_resolution(data: bytes) -> None:
    # Decode the JPEG at 1/8 of its size. This runs the same parser with 1/64 of the memory.
    try:
        image = open_lazily(data)
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        raise decode_error(error) from error


def _displayed_size(image: Image.Image) -> tuple[int, int]:
    # The metadata can have the orientation in many places. So turn a 2×1 image with the same metadata, using the
    # engine's function. The size of the result shows whether width and height are swapped.
    tiny_copy = Image.new("L", (2, 1))
    tiny_copy.info = dict(image.info)
    if turn_upright(tiny_copy).size == (2, 1):
        return image.size
    return image.height, image.width


def pillow_decoding_bytes(image: Image.Image, data: bytes) -> int:
    """Return the maximum memory in bytes that Pillow needs to load this image.

    Args:
        image: the image, which is not loaded yet.
        data: the encoded image; empty if it is not known.
    """
    return decoding_bytes(
        data,
        image_format=image.format,
        mode=image.mode,
        pixels=image.width * image.height,
        transparency="transparency" in image.info,
    )


def check_depth(mode: str) -> None:
    """Check that the colour values of an image in this Pillow mode have 8 bits, because engines cut off larger values.

    Raises:
        ImageError: the values have more bits.
    """
    if mode.startswith(("I", "F")):
        raise ImageError(
            f"the image is grey with values of more than 8 bits (mode {mode}), but engines show all values above 255 as"
            " white. Scale the values to 0 to 255, for 16 bits with"
            ' Image.fromarray((numpy.asarray(image) / 256).astype("uint8"))'
        )


def check_size(width: int, height: int, n_bytes: int | None, limits: ImageLimits) -> None:
    """Check the size of an image against the limits.

    Args:
        width: the width of the image in pixels.
        height: the height of the image in pixels.
        n_bytes: the size of the encoded image, to recognise a decompression bomb; None if the image is not encoded.
        limits: the limits.

    Raises:
        ImageError: the size is over a limit; the error names the limit.
    """
    pixels, longer, shorter = width * height, max(width, height), min(width, height)
    if shorter <= 0:
        problem = "which is not a valid size"
    elif pixels > limits.max_pixels:
        problem = describe_too_many_pixels(pixels, limits.max_pixels)
    elif longer > limits.max_side:
        problem = f"with a side longer than max_side {limits.max_side}"
    elif longer > limits.max_aspect * shorter:
        problem = f"thinner than max_aspect {limits.max_aspect:g} to 1"
    elif n_bytes is not None and pixels > _BOMB_PIXELS and pixels > n_bytes * _BOMB_PIXELS_PER_BYTE:
        problem = f"unpacked from {n_bytes} bytes: a decompression bomb"
    else:
        return
    raise ImageError(f"the image is {width}×{height}, {problem}")
