"""Decodes images under a limit on the memory of all images that are decoded at the same time."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from PIL import Image

from renderers_adapter.decoding_memory import DecodingMemory, DecodingMemoryError
from rollout.images.errors import ImageError, ImageMemoryError
from rollout.images.inspect import inspect_image
from rollout.images.pixels import load_pixels
from rollout.images.policy import ImageLimits, describe_too_much_memory

_RGB_BYTES = 4  # Pillow's, for one pixel


@contextmanager
def decoded_image(
    data: bytes,
    limits: ImageLimits,
    memory: DecodingMemory,
    *,
    processing_bytes: int = 0,
    limit_name: str = "images.memory",
) -> Iterator[Image.Image]:
    """Check and decode an image. Its memory counts against the limit until the block ends.

    Args:
        data: the encoded image.
        limits: which images are accepted.
        memory: the memory that all images of this process may take.
        processing_bytes: the bytes that the block takes besides the pixels and one copy of them.
        limit_name: the setting with the limit of `memory`, for the texts of errors.

    Raises:
        ImageError: the image is refused, or cannot be decoded.
        ImageMemoryError: other images took the memory for too long.
    """
    info = inspect_image(data, limits)
    in_block = 2 * _RGB_BYTES * info.width * info.height + processing_bytes if processing_bytes else 0
    with hold_memory(memory, max(info.decoding_bytes, in_block), limit_name=limit_name):
        yield load_pixels(data)


@contextmanager
def hold_memory(
    memory: DecodingMemory, n_bytes: int, stop: "Future[None] | None" = None, *, limit_name: str = "images.memory"
) -> Iterator[None]:
    """Hold memory for one image during the block. A result in `stop` ends the wait for this memory.

    Raises:
        ImageError: the image alone takes more than the limit.
        ImageMemoryError: the memory did not become free.
    """
    if n_bytes > memory.limit:
        raise ImageError(describe_too_much_memory(n_bytes, memory.limit, limit_name))
    try:
        with memory.hold(n_bytes, stop):
            yield
    except DecodingMemoryError as error:
        raise ImageMemoryError(str(error)) from error
