"""Prepares the images in messages, before anything else looks at the messages.

Every image part gets the canonical form and a URL that both the engine and the trainer can resolve: `file://` in the
run's own directory, or a checked `data:` URI. Messages are prepared completely or not at all: first all images are read
and checked, then the new ones are stored, and then the parts are rewritten.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from rollout.images.cache import ImageAsset
from rollout.images.message_parts import ImagePart, UndoList, find_image_parts, rewrite_image_part, roll_back
from rollout.images.policy import ImagePolicy
from rollout.images.resolve import shared_resolver


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image part of prepared messages.

    Attributes:
        message_index: the index of its message in the prepared messages.
        part_index: the index of the part in its message's content; if the image is nested in a tool's result, the index
            of the outermost part.
        asset: the image itself; the part now has its URL.
    """

    message_index: int
    part_index: int
    asset: ImageAsset


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What `prepare_images` found and did.

    Attributes:
        images: every image of the messages, in order and as often as it occurs.
        rewritten: how many parts were changed.
        bytes_written: how many bytes were written into the image directory; 0 if all images were there.
    """

    images: tuple[PreparedImage, ...]
    rewritten: int
    bytes_written: int

    @property
    def image_positions(self) -> list[tuple[int, int, str]]:
        """The message index, part index and hash of each image, as `canonicalise` takes them."""
        return [(image.message_index, image.part_index, image.asset.mm_hash) for image in self.images]


def prepare_images(messages: Sequence[Any], policy: ImagePolicy) -> PrepareReport:
    """Prepare the images of these messages in place.

    Raises:
        ImageError: an image is refused; no message was changed.
        ImageStoreError: the image directory cannot be used; no message was changed.
        ImageMemoryError: other images took the memory for decoding for too long; no message was changed.
    """
    parts = find_image_parts(messages)
    assets, bytes_written = shared_resolver(policy).resolve(parts)
    return _rewrite_parts(parts, assets, bytes_written)


async def prepare_images_async(messages: Sequence[Any], policy: ImagePolicy) -> PrepareReport:
    """Do the same in an event loop: a thread reads and stores. If the caller is cancelled, no message is changed."""
    parts = find_image_parts(messages)
    resolver = shared_resolver(policy)
    cached_assets = resolver.find_cached(parts)
    if cached_assets is not None:
        return _rewrite_parts(parts, cached_assets, 0)
    stop: Future[None] = Future()
    try:
        assets, bytes_written = await asyncio.to_thread(resolver.resolve, parts, stop)
    finally:
        stop.set_result(None)
    return _rewrite_parts(parts, assets, bytes_written)


def _rewrite_parts(parts: Sequence[ImagePart], assets: Sequence[ImageAsset], bytes_written: int) -> PrepareReport:
    undo_list: UndoList = []
    rewritten = 0
    try:
        for part, asset in zip(parts, assets, strict=True):
            rewritten += rewrite_image_part(part, asset.url, undo_list)
    except BaseException:
        roll_back(undo_list)
        raise
    images = tuple(
        PreparedImage(part.message_index, part.part_index, asset) for part, asset in zip(parts, assets, strict=True)
    )
    return PrepareReport(images, rewritten, bytes_written)
