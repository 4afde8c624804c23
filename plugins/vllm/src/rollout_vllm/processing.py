"""Loads and processes single images with vLLM's own loader and processor."""

import asyncio
import io
import os
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

from vllm.inputs import TokensPrompt
from vllm.multimodal.image import open_image
from vllm.multimodal.inputs import MultiModalKwargsItem, VisionChunkImage
from vllm.multimodal.media.image import ImageMediaIO

from .contract.decoding_memory import (
    DEFAULT_DECODING_MEMORY,
    DecodingMemory,
    DecodingMemoryError,
    decoding_bytes,
    shared_decoding_memory,
)
from .contract.geometry import Geometry, GeometryError
from .encoded_image import EncodedImage
from .errors import InvalidImageRef, MaterialisationFailed
from .image_items import ImageItem
from .resolver import ProcessedItem
from .tensors import ItemSchema, digest_tensors, read_grid, serialise

MEMORY_VARIABLE = "MMRAW_IMAGE_MEMORY"
"""The environment variable with the memory limit for decoding images, in bytes."""

_RGB_BYTES = 4  # Pillow stores an RGB pixel in 4 bytes

T = TypeVar("T")


class ImagePipeline:
    """Makes items for the engine from encoded images, as vLLM does for a normal request with one image.

    Args:
        renderer: the server's renderer, which uses its processor in one thread at a time.
        modality: the engine's name for images.
        pad_id: the id of the image pad token.
    """

    def __init__(self, renderer: Any, modality: str, pad_id: int) -> None:
        self._renderer = renderer
        self._modality = modality
        self._pad_id = pad_id
        # vLLM caches processed images by names that clients choose. A client cannot guess names that contain this
        # secret.
        self._uuid_secret = secrets.token_hex(16)
        media_io_options = renderer.model_config.get_multimodal_config().media_io_kwargs or {}
        self._image_loader = ImageMediaIO(**({"image_mode": "RGB"} | media_io_options.get("image", {})))

    def estimate_memory(self, data: bytes) -> int:
        """Return the maximum memory in bytes that `load_image` needs.

        Raises:
            InvalidImageRef: vLLM cannot open the data as an image.
        """
        try:
            image = open_image(io.BytesIO(data))
        except MemoryError:
            raise
        except Exception as error:
            raise _unreadable_error(error) from error
        pixels = image.width * image.height
        decoding = decoding_bytes(
            data, image_format=image.format, mode=image.mode, pixels=pixels, transparency="transparency" in image.info
        )
        return (
            decoding + _RGB_BYTES * pixels
        )  # the loaded image, which stays in memory while the bytes are decoded a second time

    def load_image(self, data: bytes) -> Any:
        """Load an image as vLLM does, upright and in vLLM's image mode.

        Raises:
            InvalidImageRef: vLLM cannot load the image, or a part of the image is damaged.
        """
        try:
            media = self._image_loader.load_bytes(data)
            # Decode again, because vLLM hides errors in damaged pixels when it rotates the image.
            open_image(io.BytesIO(data)).load()
            return media
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders may raise any error for damaged input
            raise _unreadable_error(error) from error

    async def process_image(self, media: Any, name: str) -> tuple[MultiModalKwargsItem, int]:
        """Return the item of a loaded image, and the number of its placeholder tokens.

        Raises:
            MaterialisationFailed: the processor failed.
        """
        uuid = f"mmraw-{self._uuid_secret}-{name}"
        media_input: Any = media
        if self._modality == "vision_chunk":
            media_input = VisionChunkImage(type="image", image=media.media, uuid=uuid)
        prompt = TokensPrompt(
            prompt_token_ids=[self._pad_id],
            multi_modal_data={self._modality: [media_input]},
            multi_modal_uuids={self._modality: [uuid]},
        )
        try:
            # Skip vLLM's cache, so that the result always has the tensors.
            (rendered,) = await self._renderer.render_cmpl_async([prompt], skip_mm_cache=True)
            (placeholder_range,) = rendered["mm_placeholders"][self._modality]
            (item,) = rendered["mm_kwargs"][self._modality]
        except Exception as error:
            raise MaterialisationFailed(f"the image processor failed: {type(error).__name__}: {error}") from error
        if list(rendered["prompt_token_ids"]) != [self._pad_id] * placeholder_range.length:
            raise MaterialisationFailed(
                "the image processor makes placeholders that contain other tokens than the pad token"
            )
        return item, placeholder_range.length


class VLLMProcessor:
    """Implements `rollout_vllm.resolver.ImageItemProcessor` with vLLM's processor."""

    def __init__(self, pipeline: ImagePipeline, schema: ItemSchema, memory: DecodingMemory) -> None:
        self._pipeline = pipeline
        self._memory = memory
        self._schema = schema

    async def process(self, encoded_image: EncodedImage) -> ProcessedItem:
        """See `rollout_vllm.resolver.ImageItemProcessor.process`."""
        n_bytes = await asyncio.to_thread(self._pipeline.estimate_memory, encoded_image.data)
        if n_bytes > self._memory.limit:
            raise InvalidImageRef(
                f"decoding the image takes {n_bytes:,} bytes of memory, but this server allows {self._memory.limit:,};"
                f" make the image smaller, or start the server with a larger {MEMORY_VARIABLE}"
            )
        try:
            async with self._memory.hold_async(n_bytes):
                media = await _run_in_thread(lambda: self._pipeline.load_image(encoded_image.data))
                item, grid = await make_image_item(self._pipeline, media, encoded_image.sha256, self._schema.geometry)
        except DecodingMemoryError as error:
            raise MaterialisationFailed(str(error)) from error
        return await asyncio.to_thread(lambda: ProcessedItem(serialise(item), grid, digest_tensors(item)))

    def verify_tensors(self, item: ImageItem) -> str:
        """See `rollout_vllm.resolver.ImageItemProcessor.verify_tensors`."""
        try:
            return self._schema.verify(item.data, item.placeholder_length)
        except InvalidImageRef as error:
            raise error.for_param(item.param) from error


async def make_image_item(
    pipeline: ImagePipeline, media: Any, name: str, geometry: Geometry
) -> tuple[MultiModalKwargsItem, tuple[int, int, int]]:
    """Return the item of a loaded image and its grid, after checking that the geometry gives the same grid.

    Raises:
        InvalidImageRef: the family does not take images of this size.
        MaterialisationFailed: the processor failed, or its grid differs from the geometry's.
    """
    try:
        layout = geometry.layout(width=media.width, height=media.height)
    except GeometryError as error:
        raise InvalidImageRef(str(error)) from error
    item, token_count = await pipeline.process_image(media, name)
    try:
        grid = read_grid(item, geometry)
    except GeometryError as error:
        raise MaterialisationFailed(f"the image processor gives no grid: {error}") from error
    if (grid, token_count) != (layout.grid, layout.tokens):
        raise MaterialisationFailed(
            f"for an image of {media.width}×{media.height} this server's processor makes the grid {grid} and"
            f" {token_count} tokens, but its configuration gives {layout.grid} and {layout.tokens}"
        )
    return item, grid


def memory_from_environment() -> DecodingMemory:
    """Return the memory with the limit from the environment variable, or with the default limit.

    Raises:
        ValueError: the variable is not a positive number of bytes.
    """
    text = os.environ.get(MEMORY_VARIABLE, str(DEFAULT_DECODING_MEMORY))
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{MEMORY_VARIABLE} must be a positive number of bytes, but is {text!r}")
    return shared_decoding_memory(int(text))


async def _run_in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread, and return its result.

    A cancelled caller waits until the function ends, because the function still uses its memory.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _unreadable_error(error: Exception) -> InvalidImageRef:
    return InvalidImageRef(f"the image cannot be loaded: {type(error).__name__}: {str(error)[:200]}")
