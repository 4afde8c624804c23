"""From the images that a request names to the items that the engine gets, or a refusal.

    resolved = await resolver.resolve(token_ids, features)

1 items            each image has its placeholder range in the prompt
2 references       each reference fits this server; nothing was read so far
3 encoded images   the bytes have the hash that the reference names
4 processed items  an image is loaded and processed once, however many requests name it
5 digests          the engine gets the digest of an item's tensors as its name, not the hash that the client gave

Because of the last step, no cache of the engine can answer with another image. The cache of processed items would take
new data for old data, and the caches of embeddings and of prefixes compare only names.
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
    """One image as the engine takes it.

    Attributes:
        serialised: its tensors as text.
        grid: the patches as (t, h, w).
        tensor_digest: the hash of the tensors, which is the engine's name for the item.
    """

    serialised: str
    grid: tuple[int, int, int]
    tensor_digest: str

    @property
    def nbytes(self) -> int:
        """How many bytes it takes; the text is ASCII."""
        return len(self.serialised)


class ImageItemProcessor(Protocol):
    """The server's own way from an encoded image to tensors."""

    async def process(self, encoded_image: EncodedImage) -> ProcessedItem:
        """Load and process one image.

        Raises:
            InvalidImageRef: the bytes are not an image that this server takes.
            MaterialisationFailed: anything else.
        """
        ...

    def verify_tensors(self, item: ImageItem) -> str:
        """Check tensors that a client serialised; returns their digest, as `process` would compute it.

        Raises:
            InvalidImageRef: they are not what this server would make of an image with so many placeholders.
        """
        ...


@dataclass(frozen=True, slots=True)
class ResolvedImages:
    """The items of a request, in its order, as the engine gets them.

    Attributes:
        tensor_digests: the names of the items.
        serialised_items: the tensors of the items as text.
    """

    tensor_digests: list[str]
    serialised_items: list[str]


class Resolver:
    """Resolves the images of requests. For one event loop.

    Args:
        count_origin: is called with the origin of each item: a value of `Origin`, or "stock" for a client's tensors.
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
        """Resolve all images of a request; raises the error of the first item that failed.

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
                f"the reference claims the grid {list(reference.grid)}, the image has {list(processed.grid)}",
                item.param,
            )
        self._hash_registry.record(item.mm_hash, processed.tensor_digest)
        self._count_origin(origin)
        return processed.tensor_digest, processed.serialised

    async def _resolve_tensors(self, item: ImageItem) -> tuple[str, str]:
        tensor_digest = await asyncio.to_thread(self._processor.verify_tensors, item)
        if not self._hash_registry.try_record(item.mm_hash, tensor_digest):
            raise InvalidImageRef("other data is known under this item's hash", item.param)
        self._count_origin("stock")
        return tensor_digest, item.data
