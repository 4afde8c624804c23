"""From what a request says of its images to what the engine is fed, or a refusal.

    resolved = await resolver.resolve(token_ids, features)

1 items     each has its place in the prompt
2 claims    each reference fits this server; nothing was read so far
3 sources   the bytes have the hash that was named
4 material  loaded and processed once, however many ask
5 names     the engine is told an item's identity, not the hash that a client calls it by

The last step is why no cache of the engine can answer for another image: not that of processed items, which would take
new data for old, nor those of embeddings and of prefixes, which look at nothing but the name.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .encoded_image import Source, read_source
from .errors import InvalidImageRef
from .hash_registry import KnownHashes
from .image_config import ServerFacts
from .image_items import Features, Item, read_items
from .references import Claim, is_reference, read_claim
from .single_flight import FlightCache


@dataclass(frozen=True, slots=True)
class Material:
    """One image as the engine takes it: serialised tensors, their grid, and a digest that names them."""

    text: str
    grid: tuple[int, int, int]
    identity: str

    @property
    def nbytes(self) -> int:
        """What it occupies; the text is ASCII."""
        return len(self.text)


class Processor(Protocol):
    """The server's own way from an encoded image to tensors."""

    async def process(self, source: Source) -> Material:
        """Load and process one image.

        Raises:
            InvalidImageRef: the bytes are not an image that this server takes.
            MaterialisationFailed: anything else.
        """
        ...

    def identify(self, item: Item) -> str:
        """Check tensors that a client serialised, and name them as `process` would.

        Raises:
            InvalidImageRef: they are not what this server would make of an image with so many placeholders.
        """
        ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """The items of a request in its order: the names and the data that the engine is given."""

    names: list[str]
    data: list[str]


class Resolver:
    """Resolves the images of requests. For one event loop.

    Args:
        count: is told where each item came from.
    """

    def __init__(
        self, facts: ServerFacts, processor: Processor, cache: FlightCache[Material], count: Callable[[str], None]
    ) -> None:
        self._facts = facts
        self._processor = processor
        self._cache = cache
        self._count = count
        self._hashes = KnownHashes()

    async def resolve(self, token_ids: Sequence[int], features: Features) -> Resolved:
        """Raises InvalidImageRef, MaterialisationFailed: that of the first item, in their order."""
        items = read_items(token_ids, features, self._facts)
        claims = [read_claim(item, self._facts) if is_reference(item) else None for item in items]
        found = await asyncio.gather(
            *(
                self._stock(item) if claim is None else self._materialise(item, claim)
                for item, claim in zip(items, claims, strict=True)
            ),
            return_exceptions=True,
        )
        names, data = [], []
        for one in found:
            if isinstance(one, BaseException):
                raise one
            names.append(one[0])
            data.append(one[1])
        return Resolved(names, data)

    async def _materialise(self, item: Item, claim: Claim) -> tuple[str, str]:
        source = await asyncio.to_thread(read_source, claim, self._facts)
        try:
            material, origin = await self._cache.get(source.sha256, lambda: self._processor.process(source))
        except InvalidImageRef as error:
            raise error.at(item.where) from error
        if material.grid != claim.grid:
            raise InvalidImageRef(
                f"the reference claims the grid {list(claim.grid)}, the image has {list(material.grid)}", item.where
            )
        self._hashes.prove(item.hash, material.identity)
        self._count(origin)
        return material.identity, material.text

    async def _stock(self, item: Item) -> tuple[str, str]:
        identity = await asyncio.to_thread(self._processor.identify, item)
        if not self._hashes.claim(item.hash, identity):
            raise InvalidImageRef("other data is known under this item's hash", item.where)
        self._count("stock")
        return identity, item.data
