"""The images of a request as it names them, and whether its prompt has a place for each.

Everything here is decided from the request alone, before anything is read. What passes cannot make the engine read a
pad token as text, an image as another modality, or an item out of a cache that may not hold it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .errors import InvalidImageRef
from .image_config import ServerFacts


class Range(Protocol):
    """A placeholder range as vLLM parses it."""

    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


class Features(Protocol):
    """The `features` of a request as vLLM parses them: lists that are parallel, ranges that do not overlap."""

    @property
    def mm_hashes(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def mm_placeholders(self) -> Mapping[str, Sequence[Range]]: ...
    @property
    def kwargs_data(self) -> Mapping[str, Sequence[str | None]] | None: ...
    @property
    def mm_metadata(self) -> Mapping[str, Sequence[str | None]] | None: ...


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a request: a reference or serialised tensors, and the length of its place in the prompt."""

    where: str
    hash: str
    length: int
    data: str


def read_items(token_ids: Sequence[int], features: Features, facts: ServerFacts) -> tuple[Item, ...]:
    """The images of `features`, each with a range that lies on pad tokens, and no pad token without an image.

    Raises:
        InvalidImageRef: an item is of another modality or null, or its range is not its own pad tokens.
    """
    for modality in features.mm_hashes:
        if modality != facts.modality:
            raise InvalidImageRef(
                f"the modality {modality[:40]!r} is refused: this server proves images, which it calls"
                f" {facts.modality!r}, and nothing else",
                f"features.mm_hashes.{modality[:40]}",
            )
    if any(data is not None for items in (features.mm_metadata or {}).values() for data in items):
        # They would be laid over the tensors after those were checked.
        raise InvalidImageRef("metadata beside the items is refused; give each item whole", "features.mm_metadata")
    hashes = features.mm_hashes.get(facts.modality, ())
    _refuse_too_many(len(hashes), facts)
    ranges = features.mm_placeholders.get(facts.modality, ())
    datas = (features.kwargs_data or {}).get(facts.modality) or [None] * len(hashes)
    items = []
    for index, (mm_hash, place, data) in enumerate(zip(hashes, ranges, datas, strict=True)):
        where = f"features.kwargs_data.{facts.modality}[{index}]"
        if not data:
            raise InvalidImageRef(
                "the item is null or empty; every image is given in every request, whatever a cache may hold", where
            )
        _require_pads(token_ids, place, facts.pad_id, where)
        items.append(Item(where, mm_hash, place.length, data))
    pads = token_ids.count(facts.pad_id)
    placed = sum(item.length for item in items)
    if pads != placed:
        raise InvalidImageRef(
            f"the prompt holds {pads} image pad tokens, the ranges cover {placed} of them", "features.mm_placeholders"
        )
    return tuple(items)


def check_parts(token_ids: Sequence[int], parts: Sequence[Mapping[str, Any]], facts: ServerFacts) -> None:
    """Whether the prompt has exactly one pad token for each part, and each part is an image.

    Raises:
        InvalidImageRef: the engine would answer this with 200 and garbage.
    """
    for index, part in enumerate(parts):
        where = f"content_parts[{index}]"
        if part.get("type") != "image_url":
            raise InvalidImageRef(f"the type is {str(part.get('type'))[:40]!r}; only image_url is read", where)
        if not part.get("url") or not isinstance(part["url"], str):
            raise InvalidImageRef("the url is missing; every image is given in every request", where)
        if not isinstance(part.get("uuid"), str | None):
            raise InvalidImageRef("the uuid is not text", where)
    _refuse_too_many(len(parts), facts)
    pads = token_ids.count(facts.pad_id)
    if pads != len(parts):
        raise InvalidImageRef(
            f"the prompt holds {pads} image pad tokens for {len(parts)} parts; beside content_parts every image has one"
            " pad token, which the engine expands",
            "content_parts",
        )


def _require_pads(token_ids: Sequence[int], place: Range, pad_id: int, where: str) -> None:
    end = place.offset + place.length
    if end > len(token_ids):
        raise InvalidImageRef(f"the range [{place.offset}, {end}) ends beyond the {len(token_ids)} tokens", where)
    for at in range(place.offset, end):
        if token_ids[at] != pad_id:
            raise InvalidImageRef(
                f"the range [{place.offset}, {end}) holds the token {token_ids[at]} at {at}; expected the image pad"
                f" token {pad_id} throughout",
                where,
            )


def _refuse_too_many(count: int, facts: ServerFacts) -> None:
    if count > facts.most_images:
        raise InvalidImageRef(
            f"the request has {count} images, this server takes {facts.most_images} (--limit-mm-per-prompt)"
        )
