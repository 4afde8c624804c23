"""Reads the format, size, frames and transparency of an image from its header, and checks them against limits."""

from dataclasses import dataclass, replace

from PIL import Image

from renderers_adapter.decoding_memory import decoding_bytes
from rollout.images.container_format import count_frames
from rollout.images.errors import ImageError
from rollout.images.formats import JPEG, ImageFormat, detect_format
from rollout.images.jpeg import read_jpeg
from rollout.images.pixels import decode_error, load_pixels, open_lazily, turn_upright
from rollout.images.policy import ImageLimits, describe_too_many_bytes, describe_too_many_pixels

# An image with more pixels than this and hardly any bytes is a decompression bomb.
_BOMB_PIXELS = 1 << 23
_BOMB_PIXELS_PER_BYTE = 2_000


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header of an encoded image says.

    Attributes:
        format: its file format.
        width: its width in pixels as displayed, after the orientation in its metadata is applied.
        height: its height in pixels as displayed.
        frames: the number of its frames; only the first is used.
        has_alpha: whether it has transparency.
        proven: whether the header alone proves that the pixels can be decoded.
        decoding_bytes: the most bytes of memory that decoding it takes.
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
    """Read the header and the structure of an image, without decoding pixels.

    Raises:
        ImageError: it does not have an accepted format, is incomplete, is two files in one, or is over a limit.
    """
    if len(data) > limits.max_bytes:
        raise ImageError(f"the image has {describe_too_many_bytes(len(data), limits.max_bytes)}")
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
    """Decode an image once, unless its header proves that it can be decoded; return its info with the decoded size.

    Raises:
        ImageError: it cannot be decoded.
    """
    if info.proven:
        return info
    if info.format is JPEG:
        _decode_at_low_resolution(data)
        return info
    width, height = load_pixels(data).size
    return replace(info, width=width, height=height)


def _decode_at_low_resolution(data: bytes) -> None:
    # A JPEG that is decoded at 1/8 of its size uses the same parser, with 1/64 of the memory.
    try:
        image = open_lazily(data)
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        raise decode_error(error) from error


def _displayed_size(image: Image.Image) -> tuple[int, int]:
    # The orientation can be in many places of the metadata. So the engine's own function turns a 2×1 image with the
    # same metadata, and the result shows whether the sides are swapped.
    tiny_copy = Image.new("L", (2, 1))
    tiny_copy.info = dict(image.info)
    if turn_upright(tiny_copy).size == (2, 1):
        return image.size
    return image.height, image.width


def pillow_decoding_bytes(image: Image.Image, data: bytes) -> int:
    """Return the most bytes of memory that loading this image of Pillow takes.

    Args:
        image: the image, which is not loaded yet.
        data: its encoded bytes; empty if they are not known.
    """
    return decoding_bytes(
        data,
        image_format=image.format,
        mode=image.mode,
        pixels=image.width * image.height,
        transparency="transparency" in image.info,
    )


def check_depth(mode: str) -> None:
    """Check that the pixels of an image in this Pillow mode fit into 8 bits; engines cut off larger values.

    Raises:
        ImageError: they do not.
    """
    if mode.startswith(("I", "F")):
        raise ImageError(
            f"the image is grey with values of more than 8 bits (mode {mode}), and engines show all values above 255 as"
            " white; scale them to 0 to 255, for 16 bits with"
            ' Image.fromarray((numpy.asarray(image) / 256).astype("uint8"))'
        )


def check_size(width: int, height: int, n_bytes: int | None, limits: ImageLimits) -> None:
    """Check the size of an image against the limits.

    Args:
        width: its width in pixels.
        height: its height in pixels.
        n_bytes: the number of its encoded bytes, to recognise a decompression bomb; None if it is not encoded.
        limits: the limits.

    Raises:
        ImageError: the size is over a limit; the reason says which.
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
