"""Prepares the images in messages, before any other code uses the messages.

Every image part gets the canonical form, and a URL that engine and trainer can read. This is a `file://` URL in the
run's directory, or a checked `data:` URI. First all images are read and checked, then new images are stored, and then
the parts are rewritten. If a step fails, no message is changed.
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
        message_index: the index of the message in the prepared messages.
        part_index: the index of the part in the message's content. If the image is nested in a tool's result, this is
            the index of the outermost part.
        asset: the image; the part now has its URL.
    """

    message_index: int
    part_index: int
    asset: ImageAsset


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """The result of `prepare_images`.

    Attributes:
        images: the image of each image part of the messages, in order.
        rewritten: the number of parts that were changed.
        bytes_written: the number of bytes that were written to the image directory; 0 if it had all images already.
    """

    images: tuple[PreparedImage, ...]
    rewritten: int
    bytes_written: int

    @property
    def image_positions(self) -> list[tuple[int, int, str]]:
        """The message index, part index and hash of each image, in the form that `canonicalise` takes."""
        return [(image.message_index, image.part_index, image.asset.mm_hash) for image in self.images]


def prepare_images(messages: Sequence[Any], policy: ImagePolicy) -> PrepareReport:
    """Prepare the images of these messages in place, and return a report.

    Raises:
        ImageError: an image is refused; no message was changed.
        ImageStoreError: the image directory cannot be used; no message was changed.
        ImageMemoryError: the memory for decoding did not become free in time; no message was changed.
    """
    parts = find_image_parts(messages)
    assets, bytes_written = shared_resolver(policy).resolve(parts)
    return _rewrite_parts(parts, assets, bytes_written)


async def prepare_images_async(messages: Sequence[Any], policy: ImagePolicy) -> PrepareReport:
    """Do the same as `prepare_images`, but read and store in a thread. A cancelled call changes no message."""
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
