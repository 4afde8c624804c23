"""Makes the items for the engine from the images that a request names, or refuses the request.

    resolved = await resolver.resolve(token_ids, features)

The steps are:

- Items: each image must have its placeholder range in the prompt.
- References: each reference must fit this server. No image is read before this step.
- Encoded images: the bytes must have the hash that the reference names.
- Processed items: an image is loaded and processed once, even if many requests name it at the same time.
- Digests: the engine gets the digest of an item's tensors as the item's name, not the hash from the client.

The engine's caches compare only names, and a client may use one name for several images. So without the last step, a
cache could return a wrong image.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .encoded_image import EncodedImage, read_encoded_image
from .errors import InvalidImageRef
from .hash_registry import HashRegistry
from .image_config import ServerImageConfig
from .image_items import ImageItem, VllmFeatures, read_items
from .references import CheckedReference, check_reference, is_reference
from .single_flight import AsyncSingleFlightCache


@dataclass(frozen=True, slots=True)
class ProcessedItem:
    """One image in the form that the engine takes.

    Attributes:
        serialised: the image's tensors as ASCII text.
        grid: the number of patches in time, height and width, as (t, h, w).
        tensor_digest: the hash of the tensors, which is the name of the item in the engine.
    """

    serialised: str
    grid: tuple[int, int, int]
    tensor_digest: str

    @property
    def nbytes(self) -> int:
        """The size of the item in bytes."""
        return len(self.serialised)


class ImageItemProcessor(Protocol):
    """Makes tensors from encoded images with the server's own processor."""

    async def process(self, encoded_image: EncodedImage) -> ProcessedItem:
        """Load and process one image.

        Raises:
            InvalidImageRef: the bytes are not an image that this server takes.
            MaterialisationFailed: this server failed.
        """
        ...

    def verify_tensors(self, item: ImageItem) -> str:
        """Check tensors that a client serialised, and return the digest that `process` would compute.

        Raises:
            InvalidImageRef: this server would not make such tensors for the item's placeholder range.
        """
        ...


@dataclass(frozen=True, slots=True)
class ResolvedImages:
    """The items of a request for the engine, in the order of the request.

    Attributes:
        tensor_digests: the name of each item: the digest of its tensors.
        serialised_items: the tensors of each item, as text.
    """

    tensor_digests: list[str]
    serialised_items: list[str]


class Resolver:
    """Resolves the images of requests, on one event loop.

    Args:
        image_config: the image configuration of the server.
        processor: makes tensors from images.
        cache: keeps processed images.
        count_origin: a function that is called with the origin of each item: a value of `Origin`, or "stock" for
            tensors from a client.
    """

    def __init__(
        self,
        image_config: ServerImageConfig,
        processor: ImageItemProcessor,
        cache: AsyncSingleFlightCache[ProcessedItem],
        count_origin: Callable[[str], None],
    ) -> None:
        self._image_config = image_config
        self._processor = processor
        self._cache = cache
        self._count_origin = count_origin
        self._hash_registry = HashRegistry()

    async def resolve(self, token_ids: Sequence[int], features: VllmFeatures) -> ResolvedImages:
        """Resolve and return all images of a request. If several items fail, raise the error of the first one.

        Raises:
            InvalidImageRef: the request is refused.
            MaterialisationFailed: this server failed.
        """
        items = read_items(token_ids, features, self._image_config)
        references = [check_reference(item, self._image_config) if is_reference(item) else None for item in items]
        results = await asyncio.gather(
            *(
                self._resolve_tensors(item) if reference is None else self._resolve_reference(item, reference)
                for item, reference in zip(items, references, strict=True)
            ),
            return_exceptions=True,
        )
        tensor_digests, serialised_items = [], []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            tensor_digests.append(result[0])
            serialised_items.append(result[1])
        return ResolvedImages(tensor_digests, serialised_items)

    async def _resolve_reference(self, item: ImageItem, reference: CheckedReference) -> tuple[str, str]:
        encoded_image = await asyncio.to_thread(read_encoded_image, reference, self._image_config)
        try:
            processed, origin = await self._cache.get(
                encoded_image.sha256, lambda: self._processor.process(encoded_image)
            )
        except InvalidImageRef as error:
            raise error.for_param(item.param) from error
        if processed.grid != reference.grid:
            raise InvalidImageRef(
                f"the reference has the grid {list(reference.grid)}, but the image has {list(processed.grid)}",
                item.param,
            )
        self._hash_registry.record(item.mm_hash, processed.tensor_digest)
        self._count_origin(origin)
        return processed.tensor_digest, processed.serialised

    async def _resolve_tensors(self, item: ImageItem) -> tuple[str, str]:
        tensor_digest = await asyncio.to_thread(self._processor.verify_tensors, item)
        if not self._hash_registry.try_record(item.mm_hash, tensor_digest):
            raise InvalidImageRef(
                "an earlier item with this hash had other tensors; use the hash of the data", item.param
            )
        self._count_origin("stock")
        return tensor_digest, item.data
