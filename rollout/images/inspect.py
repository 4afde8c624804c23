"""What an image is, from its header: type, displayed size, frames, transparency; and whether a run may take it."""

from dataclasses import dataclass, replace

from PIL import Image

from renderers_adapter.decoding_memory import decoding_bytes
from rollout.images.container_format import count_frames
from rollout.images.errors import ImageError
from rollout.images.formats import JPEG, ImageFormat, detect_format
from rollout.images.jpeg import read_jpeg
from rollout.images.pixels import decode_error, load_pixels, open_lazily, turn_upright
from rollout.images.policy import ImageLimits, describe_too_many_bytes, describe_too_many_pixels

# Above this many pixels, an image with hardly any bytes behind them is a bomb rather than a picture.
_BOMB_PIXELS = 1 << 23
_BOMB_PIXELS_PER_BYTE = 2_000


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One encoded image.

    Attributes:
        format: its file format.
        width: its width as displayed, after the orientation in its metadata was applied.
        height: its height as displayed.
        frames: the number of its frames; only the first is used.
        has_alpha: whether it has transparency.
        proven: the header alone shows that the pixels can be decoded.
        decoding_bytes: the most memory that decoding it takes.
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
    """Read the header and the structure of an image; no pixel is decoded.

    Raises:
        ImageError: not an accepted format, cut short, two files in one, or over a limit; the reason says which.
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
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged input
        raise decode_error(error) from error
    return ImageInfo(image_format, width, height, frames, has_alpha, proven=False, decoding_bytes=memory)


def confirm_decodable(data: bytes, info: ImageInfo) -> ImageInfo:
    """Decode an image once, unless its header proves that it can be decoded, and take over the decoder's size.

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
    # At an eighth of its size a JPEG passes through the same parser with a sixty-fourth of the memory.
    try:
        image = open_lazily(data)
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        raise decode_error(error) from error


def _displayed_size(image: Image.Image) -> tuple[int, int]:
    # The orientation can be in many places of the metadata. So the engine's own function turns a 2×1 image that has
    # the same metadata, and we see whether its sides were swapped.
    tiny_copy = Image.new("L", (2, 1))
    tiny_copy.info = dict(image.info)
    if turn_upright(tiny_copy).size == (2, 1):
        return image.size
    return image.height, image.width


def pillow_decoding_bytes(image: Image.Image, data: bytes) -> int:
    """The most memory that decoding this image of Pillow takes, which is not loaded yet."""
    return decoding_bytes(
        data,
        image_format=image.format,
        mode=image.mode,
        pixels=image.width * image.height,
        transparency="transparency" in image.info,
    )


def check_depth(mode: str) -> None:
    """Refuse values that do not fit into 8 bits: engines cut them off.

    Raises:
        ImageError: the mode has wider values.
    """
    if mode.startswith(("I", "F")):
        raise ImageError(
            f"the image is grey with values of more than 8 bits (mode {mode}), of which engines show all above 255 as"
            " white; bring them into 0 to 255, where they have 16 bits with"
            ' Image.fromarray((numpy.asarray(image) / 256).astype("uint8"))'
        )


def check_size(width: int, height: int, n_bytes: int | None, limits: ImageLimits) -> None:
    """Refuse a size beyond the limits, and one that `n_bytes` of an encoded image cannot stand for.

    Raises:
        ImageError: the reason says which limit.
    """
    pixels, longer, shorter = width * height, max(width, height), min(width, height)
    if shorter <= 0:
        problem = "which is no size"
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
