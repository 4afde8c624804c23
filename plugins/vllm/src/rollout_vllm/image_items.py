"""Reads the images that a request names, and checks that the prompt has a placeholder range for each image.

These checks need only the request, and run before an image is read. They make sure that each pad token belongs to an
image, that each item is an image, and that no item is only in a cache.
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
        """The position of the range's first pad token."""

    @property
    def length(self) -> int:
        """The number of pad tokens in the range."""


class VllmFeatures(Protocol):
    """The `features` of a request, by modality. vLLM has checked that list lengths match and ranges do not overlap."""

    @property
    def mm_hashes(self) -> Mapping[str, Sequence[str]]:
        """The hash of each item."""

    @property
    def mm_placeholders(self) -> Mapping[str, Sequence[VllmPlaceholderRange]]:
        """The placeholder range of each item."""

    @property
    def kwargs_data(self) -> Mapping[str, Sequence[str | None]] | None:
        """A reference or serialised tensors for each item; None for an item that the client expects in vLLM's cache."""

    @property
    def mm_metadata(self) -> Mapping[str, Sequence[str | None]] | None:
        """Other data of each item, which vLLM would apply to the item's tensors."""


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One image of a request.

    Attributes:
        param: the path of the item in the request, for error answers.
        mm_hash: the image's hash according to the request.
        placeholder_length: the number of pad tokens that the image has in the prompt.
        data: an `mmraw:` reference or serialised tensors.
    """

    param: str
    mm_hash: str
    placeholder_length: int
    data: str


def read_items(
    token_ids: Sequence[int], features: VllmFeatures, image_config: ServerImageConfig
) -> tuple[ImageItem, ...]:
    """Return the images of `features`. Check that the ranges cover only pad tokens, and all pad tokens.

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
            raise InvalidImageRef("the item is null or empty; send the data of every image in every request", param)
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
    """Check that each part is an image, and that the prompt has exactly one pad token for each part.

    Raises:
        InvalidImageRef: a check fails. vLLM would accept the request, but would treat its images wrongly.
    """
    for index, part in enumerate(parts):
        param = f"content_parts[{index}]"
        if part.get("type") != "image_url":
            raise InvalidImageRef(f"the type is {str(part.get('type'))[:40]!r}; expected 'image_url'", param)
        if not part.get("url") or not isinstance(part["url"], str):
            raise InvalidImageRef("the url is missing; send the URL of every image in every request", param)
        if not isinstance(part.get("uuid"), str | None):
            raise InvalidImageRef("the uuid is not a string", param)
    _require_max_images(len(parts), image_config)
    pad_count = token_ids.count(image_config.pad_id)
    if pad_count != len(parts):
        raise InvalidImageRef(
            f"the prompt has {pad_count} image pad tokens for {len(parts)} parts; with content_parts, each image must "
            "have exactly one pad token, which the engine expands",
            "content_parts",
        )


def _require_pads(token_ids: Sequence[int], placeholder_range: VllmPlaceholderRange, pad_id: int, param: str) -> None:
    end = placeholder_range.offset + placeholder_range.length
    if end > len(token_ids):
        raise InvalidImageRef(
            f"the range [{placeholder_range.offset}, {end}) ends after the last of the {len(token_ids)} tokens", param
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
            f"the request has {count} images; this server takes up to {image_config.max_images} (--limit-mm-per-prompt)"
        )
