"""Decodes images, and limits the memory that all images take that are decoded at the same time."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from PIL import Image

from renderers_adapter.decoding_memory import DecodingMemory, DecodingMemoryError
from rollout.images.errors import ImageError, ImageMemoryError
from rollout.images.inspect import inspect_image
from rollout.images.pixels import load_pixels
from rollout.images.policy import ImageLimits, describe_too_much_memory

_RGB_BYTES = 4  # the memory that Pillow uses for one RGB pixel


@contextmanager
def decoded_image(
    data: bytes,
    limits: ImageLimits,
    memory: DecodingMemory,
    *,
    processing_bytes: int = 0,
    limit_name: str = "images.memory",
) -> Iterator[Image.Image]:
    """Check and decode an image, and hold memory for it until the `with` block ends.

    Args:
        data: the encoded image.
        limits: the limits on accepted images.
        memory: the memory limit for all images of this process.
        processing_bytes: the bytes that the block needs in addition to the pixels and one copy of them.
        limit_name: the name of the setting that limits `memory`, for error texts.

    Raises:
        ImageError: the image is refused, or cannot be decoded.
        ImageMemoryError: the memory did not become free in time, because other images used it.
    """
    info = inspect_image(data, limits)
    in_block = 2 * _RGB_BYTES * info.width * info.height + processing_bytes if processing_bytes else 0
    with hold_memory(memory, max(info.decoding_bytes, in_block), limit_name=limit_name):
        yield load_pixels(data)


@contextmanager
def hold_memory(
    memory: DecodingMemory, n_bytes: int, stop: "Future[None] | None" = None, *, limit_name: str = "images.memory"
) -> Iterator[None]:
    """Hold memory for one image during the `with` block. A result in `stop` ends the wait for free memory.

    Raises:
        ImageError: this image alone needs more memory than the limit.
        ImageMemoryError: the memory did not become free in time, or `stop` ended the wait.
    """
    if n_bytes > memory.limit:
        raise ImageError(describe_too_much_memory(n_bytes, memory.limit, limit_name))
    try:
        with memory.hold(n_bytes, stop):
            yield
    except DecodingMemoryError as error:
        raise ImageMemoryError(str(error)) from error
