"""Keeps the images of one rollout: for each image its reference for requests, its token count and its descriptor.

An image is identified by its hash. Its descriptor crosses the queue once, with the first step that has the image. Every
request contains a reference to the image again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from renderers_adapter.geometry import Geometry
from renderers_adapter.tokens import Placeholder
from rollout.engine.image_refs import ImageRef
from rollout.images import PreparedImage
from rollout.records.kinds import MessageTokens
from rollout.records.messages import MessageError


@dataclass(frozen=True, slots=True)
class _ImageEntry:
    reference: ImageRef
    token_count: int

    @property
    def record(self) -> Mapping[str, Any]:
        """The fields of the descriptor that differ between images: the layout and the location; see `Step.images`."""
        url = self.reference.url
        source = {"raw_image_id": url.rpartition("/")[2]} if self.reference.is_file else {"raw_uri": url}
        return {"payload": self.reference.payload, **source}


class ImageTable:
    """Keeps all images of a rollout, because an image that a compaction removed may be used again."""

    def __init__(self, geometry: Geometry | None) -> None:
        self._geometry = geometry
        self._entries: dict[str, _ImageEntry] = {}
        self._sent_hashes: set[str] = set()

    def __len__(self) -> int:
        """The number of different images whose descriptors were put in steps."""
        return len(self._sent_hashes)

    def add(self, images: Sequence[PreparedImage], *, first_index: int) -> None:
        """Add the images that are not known yet.

        Args:
            images: the images of new messages.
            first_index: the index of the first new message in the conversation, for errors.

        Raises:
            MessageError: the model is text-only.
            GeometryError: the model does not accept an image of this size.
        """
        for image in images:
            asset = image.asset
            if asset.mm_hash in self._entries:
                continue
            if self._geometry is None:
                raise MessageError(
                    f"messages[{first_index + image.message_index}] contains an image, but the renderer of this model "
                    "accepts only text. Set model.renderer to a built-in renderer with images (docs/models.md), or "
                    "leave the image out."
                )
            payload, token_count = _layout_payload_and_tokens(self._geometry, asset.width, asset.height)
            self._entries[asset.mm_hash] = _ImageEntry(ImageRef(asset.url, asset.mm_hash, payload), token_count)

    def token_count(self, mm_hash: str) -> int:
        """Return the number of tokens that an image has in expanded ids."""
        return self._entries[mm_hash].token_count

    def references(self, placeholders: Iterable[Placeholder]) -> tuple[ImageRef, ...]:
        """Return one reference for each placeholder, in order. An image that occurs twice has two references."""
        return tuple(self._entries[placeholder.hash].reference for placeholder in placeholders)

    def take_new_records(self, nodes: Iterable[MessageTokens]) -> dict[str, Mapping[str, Any]]:
        """Return the descriptors, by hash, of the images in these nodes that no earlier step contained."""
        new_hashes = dict.fromkeys(
            slot.hash for node in nodes for slot in node.run.images if slot.hash not in self._sent_hashes
        )
        self._sent_hashes.update(new_hashes)
        return {mm_hash: self._entries[mm_hash].record for mm_hash in new_hashes}


@lru_cache(maxsize=1024)
def _layout_payload_and_tokens(geometry: Geometry, width: int, height: int) -> tuple[Mapping[str, Any], int]:
    """Return the layout for a descriptor and its number of tokens. Images of the same size share these objects."""
    layout = geometry.layout(width=width, height=height)
    return geometry.payload(layout), layout.tokens
