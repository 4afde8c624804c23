"""Reads the images that a request names, and checks that its prompt has a placeholder range for each.

These checks need only the request, and come before any image is read. After them, the engine cannot take a pad token
for text, an image for another modality, or an item from a cache that may not have it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .errors import InvalidImageRef
from .image_config import ServerImageConfig


class VllmPlaceholderRange(Protocol):
    """A placeholder range as vLLM parses it."""

    @property
    def offset(self) -> int:
        """The position of its first pad token."""

    @property
    def length(self) -> int:
        """How many pad tokens it has."""


class VllmFeatures(Protocol):
    """The `features` of a request, by modality. vLLM has checked that lists are parallel and ranges do not overlap."""

    @property
    def mm_hashes(self) -> Mapping[str, Sequence[str]]:
        """The hash of each item."""

    @property
    def mm_placeholders(self) -> Mapping[str, Sequence[VllmPlaceholderRange]]:
        """The placeholder range of each item."""

    @property
    def kwargs_data(self) -> Mapping[str, Sequence[str | None]] | None:
        """A reference, or serialised tensors, for each item; None for an item that may be in vLLM's cache."""

    @property
    def mm_metadata(self) -> Mapping[str, Sequence[str | None]] | None:
        """Other data of each item, which vLLM would apply to its tensors."""


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One image of a request.

    Attributes:
        param: the path of the item in the request, for error answers.
        mm_hash: the hash that the request gives the image.
        placeholder_length: how many pad tokens the image has in the prompt.
        data: an `mmraw:` reference or serialised tensors.
    """

    param: str
    mm_hash: str
    placeholder_length: int
    data: str


def read_items(
    token_ids: Sequence[int], features: VllmFeatures, image_config: ServerImageConfig
) -> tuple[ImageItem, ...]:
    """Return the images of `features`, after checking that each range covers only pad tokens, and all are covered.

    Raises:
        InvalidImageRef: an item has another modality or is null, or the ranges do not fit the pad tokens.
    """
    for modality in features.mm_hashes:
        if modality != image_config.modality:
            raise InvalidImageRef(
                f"the modality {modality[:40]!r} is refused; this server takes only images, as"
                f" {image_config.modality!r}",
                f"features.mm_hashes.{modality[:40]}",
            )
    if any(data is not None for items in (features.mm_metadata or {}).values() for data in items):
        # vLLM would apply the metadata to the tensors after they were checked.
        raise InvalidImageRef("mm_metadata is refused; send each item complete", "features.mm_metadata")
    hashes = features.mm_hashes.get(image_config.modality, ())
    _require_max_images(len(hashes), image_config)
    ranges = features.mm_placeholders.get(image_config.modality, ())
    kwargs_data = (features.kwargs_data or {}).get(image_config.modality) or [None] * len(hashes)
    items = []
    for index, (mm_hash, placeholder_range, data) in enumerate(zip(hashes, ranges, kwargs_data, strict=True)):
        param = f"features.kwargs_data.{image_config.modality}[{index}]"
        if not data:
            raise InvalidImageRef("the item is null or empty; send every image in every request", param)
        _require_pads(token_ids, placeholder_range, image_config.pad_id, param)
        items.append(ImageItem(param, mm_hash, placeholder_range.length, data))
    pad_count = token_ids.count(image_config.pad_id)
    covered_count = sum(item.placeholder_length for item in items)
    if pad_count != covered_count:
        raise InvalidImageRef(
            f"the prompt has {pad_count} image pad tokens, but the ranges cover {covered_count} of them",
            "features.mm_placeholders",
        )
    return tuple(items)


def check_content_parts(
    token_ids: Sequence[int], parts: Sequence[Mapping[str, Any]], image_config: ServerImageConfig
) -> None:
    """Check that the prompt has exactly one pad token for each part, and that each part is an image.

    Raises:
        InvalidImageRef: vLLM would accept the request, but take the images for something else.
    """
    for index, part in enumerate(parts):
        param = f"content_parts[{index}]"
        if part.get("type") != "image_url":
            raise InvalidImageRef(f"the type is {str(part.get('type'))[:40]!r}; expected 'image_url'", param)
        if not part.get("url") or not isinstance(part["url"], str):
            raise InvalidImageRef("the url is missing; send every image in every request", param)
        if not isinstance(part.get("uuid"), str | None):
            raise InvalidImageRef("the uuid is not a string", param)
    _require_max_images(len(parts), image_config)
    pad_count = token_ids.count(image_config.pad_id)
    if pad_count != len(parts):
        raise InvalidImageRef(
            f"the prompt has {pad_count} image pad tokens for {len(parts)} parts; with content_parts each image must "
            "have one pad token, which the engine expands",
            "content_parts",
        )


def _require_pads(token_ids: Sequence[int], placeholder_range: VllmPlaceholderRange, pad_id: int, param: str) -> None:
    end = placeholder_range.offset + placeholder_range.length
    if end > len(token_ids):
        raise InvalidImageRef(
            f"the range [{placeholder_range.offset}, {end}) ends after the {len(token_ids)} tokens", param
        )
    for position in range(placeholder_range.offset, end):
        if token_ids[position] != pad_id:
            raise InvalidImageRef(
                f"the range [{placeholder_range.offset}, {end}) has the token {token_ids[position]} at {position}; "
                f"expected only the image pad token {pad_id}",
                param,
            )


def _require_max_images(count: int, image_config: ServerImageConfig) -> None:
    if count > image_config.max_images:
        raise InvalidImageRef(
            f"the request has {count} images; this server takes {image_config.max_images} (--limit-mm-per-prompt)"
        )
