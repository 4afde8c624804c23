"""vLLM's own loader and processor, one image at a time."""

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
"""The environment variable with the most bytes of memory for decoding images."""

_RGB_BYTES = 4  # Pillow's, for one pixel

T = TypeVar("T")


class ImagePipeline:
    """From encoded bytes to an item of the engine, in the same way as an ordinary request with one image.

    Args:
        renderer: the server's own renderer, because its processor is for one thread at a time.
    """

    def __init__(self, renderer: Any, modality: str, pad_id: int) -> None:
        self._renderer = renderer
        self._modality = modality
        self._pad_id = pad_id
        # vLLM caches processed images under names that any client may choose; a client cannot guess these.
        self._uuid_secret = secrets.token_hex(16)
        media_io_options = renderer.model_config.get_multimodal_config().media_io_kwargs or {}
        self._image_loader = ImageMediaIO(**({"image_mode": "RGB"} | media_io_options.get("image", {})))

    def estimate_memory(self, data: bytes) -> int:
        """The most memory that `load_image` takes.

        Raises:
            InvalidImageRef: no reader of vLLM takes it for an image.
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
        return decoding + _RGB_BYTES * pixels  # the image is there while it is decoded a second time

    def load_image(self, data: bytes) -> Any:
        """The image as vLLM loads it, upright and in its mode.

        Raises:
            InvalidImageRef: vLLM cannot load it, or not all of it.
        """
        try:
            media = self._image_loader.load_bytes(data)
            # vLLM loses the error of damaged pixels when it rotates the image, and Pillow raises it only once.
            open_image(io.BytesIO(data)).load()
            return media
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged input
            raise _unreadable_error(error) from error

    async def process_image(self, media: Any, name: str) -> tuple[MultiModalKwargsItem, int]:
        """The item of an image, and how many placeholders it takes.

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
            # This skips the cache that the engine mirrors, so that the tensors always come back.
            (rendered,) = await self._renderer.render_cmpl_async([prompt], skip_mm_cache=True)
            (placeholder_range,) = rendered["mm_placeholders"][self._modality]
            (item,) = rendered["mm_kwargs"][self._modality]
        except Exception as error:
            raise MaterialisationFailed(f"the image processor failed: {type(error).__name__}: {error}") from error
        if list(rendered["prompt_token_ids"]) != [self._pad_id] * placeholder_range.length:
            raise MaterialisationFailed("the image processor makes placeholders of other tokens than the pad token")
        return item, placeholder_range.length


class VLLMProcessor:
    """The `ImageItemProcessor` of a resolver."""

    def __init__(self, pipeline: ImagePipeline, schema: ItemSchema, memory: DecodingMemory) -> None:
        self._pipeline = pipeline
        self._memory = memory
        self._schema = schema

    async def process(self, encoded_image: EncodedImage) -> ProcessedItem:
        """See `rollout_vllm.resolver.ImageItemProcessor`."""
        n_bytes = await asyncio.to_thread(self._pipeline.estimate_memory, encoded_image.data)
        if n_bytes > self._memory.limit:
            raise InvalidImageRef(
                f"decoding the image takes {n_bytes:,} bytes of memory, and this server allows {self._memory.limit:,}:"
                f" make the image smaller, or start the server with a larger {MEMORY_VARIABLE}"
            )
        try:
            async with self._memory.hold_async(n_bytes):
                media = await _run_to_the_end(lambda: self._pipeline.load_image(encoded_image.data))
                item, grid = await make_image_item(self._pipeline, media, encoded_image.sha256, self._schema.geometry)
        except DecodingMemoryError as error:
            raise MaterialisationFailed(str(error)) from error
        return await asyncio.to_thread(lambda: ProcessedItem(serialise(item), grid, digest_tensors(item)))

    def verify_tensors(self, item: ImageItem) -> str:
        """See `rollout_vllm.resolver.ImageItemProcessor`."""
        try:
            return self._schema.verify(item.data, item.placeholder_length)
        except InvalidImageRef as error:
            raise error.for_param(item.param) from error


async def make_image_item(
    pipeline: ImagePipeline, media: Any, name: str, geometry: Geometry
) -> tuple[MultiModalKwargsItem, tuple[int, int, int]]:
    """The item of an image and its grid, which must be what the geometry says of an image of this size.

    Raises:
        InvalidImageRef: the family takes no image of this size.
        MaterialisationFailed: the processor failed, or does not follow the geometry.
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
            f"an image of {media.width}×{media.height} has the grid {grid} and {token_count} tokens by this server's"
            f" processor, but {layout.grid} and {layout.tokens} by its configuration"
        )
    return item, grid


def memory_from_environment() -> DecodingMemory:
    """The limit that the environment sets, or the default.

    Raises:
        ValueError: it is not a number of bytes.
    """
    text = os.environ.get(MEMORY_VARIABLE, str(DEFAULT_DECODING_MEMORY))
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{MEMORY_VARIABLE} must be a number of bytes, but is {text!r}")
    return shared_decoding_memory(int(text))


async def _run_to_the_end(function: Callable[[], T]) -> T:
    """Call it in a thread. Whoever is cancelled waits for the thread, which still has its memory."""
    task = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _unreadable_error(error: Exception) -> InvalidImageRef:
    return InvalidImageRef(f"the image cannot be loaded: {type(error).__name__}: {str(error)[:200]}")
