"""Defines the descriptor, which represents an image in the sidecar of a prompt, and the sidecar itself.

A descriptor says where the encoded image is and how many patches it has. It never contains pixels, because engine and
trainer make the pixels from the image. `reject_processed` checks this when a sidecar is built, encoded and decoded.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from .data_uris import find_data_uri_payload
from .errors import AdapterError

RAW_MM_ITEM_KIND = "prime_raw_mm_item"
RAW_MM_ITEM_VERSION = 1

SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]+")
SAFE_FINGERPRINT = re.compile(r"[0-9a-f]{16,64}")
SAFE_HASH = re.compile(r"[0-9a-f]{16,128}")

PROCESSED_KEYS = frozenset(
    name + suffix for name in ("pixel_values", "image_embeds", "image_features") for suffix in ("", "_videos")
) | {"video_embeds", "video_features"}
"""The keys under which processors and models store pixels, embeddings and features."""
_ARRAY_TAG = re.compile(r"_*(nd_?array|numpy|array|torch|tensor)_*|(torch|np|numpy)\..+", re.IGNORECASE)
_TAG_KEYS = frozenset({"type", "kind", "__type__", "_type", "__class__"})
_PLAIN_TYPES = frozenset({str, int, float, bool, type(None)})
_MAX_DEPTH = 64


class DescriptorError(AdapterError):
    """A descriptor or a sidecar is invalid. The message names the field and its value."""


class ProcessedPayloadError(DescriptorError):
    """A sidecar contains pixels, embeddings or another array.

    Attributes:
        path: the path of the array in the sidecar.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        super().__init__(f"{path} {problem}; a sidecar may contain only raw descriptors")


@dataclass(frozen=True, slots=True)
class RawMMItem:
    """The content of one image's descriptor, after it was checked.

    Attributes:
        modality: the kind of input, which is `image`.
        family: the family of the image's geometry.
        layout_fingerprint: the layout fingerprint of the geometry.
        payload: the data that the geometry defines: the grid of the image.
        raw_image_id: the file name of the image as an asset; None if `raw_uri` is set.
        raw_uri: the image itself as a `data:` URI; None if `raw_image_id` is set.
        vllm_modality: vLLM's name for the modality; None if vLLM uses the same name.
    """

    modality: str
    family: str
    layout_fingerprint: str
    payload: Mapping[str, Any]
    raw_image_id: str | None
    raw_uri: str | None
    vllm_modality: str | None


@dataclass(frozen=True, slots=True)
class PlaceholderRange:
    """The range of one image's pad tokens in the expanded ids.

    Attributes:
        offset: the position of the image's first pad token.
        length: the number of the image's pad tokens.
    """

    offset: int
    length: int


def raw_mm_item(
    *,
    family: str,
    fingerprint: str,
    payload: Mapping[str, Any],
    raw_image_id: str | None = None,
    raw_uri: str | None = None,
    modality: str = "image",
    vllm_modality: str | None = None,
) -> dict[str, Any]:
    """Build and return the descriptor of one image. `RawMMItem` explains the fields.

    Raises:
        DescriptorError: a field is unsafe, or there is not exactly one of `raw_image_id` and `raw_uri`.
        ProcessedPayloadError: the payload contains an array.
    """
    common_fields = raw_mm_common_fields(
        family=family, fingerprint=fingerprint, modality=modality, vllm_modality=vllm_modality
    )
    item = {**common_fields, "payload": dict(payload)}
    reject_processed(item["payload"], "item.payload")
    _check_one_source(raw_image_id, raw_uri, "item")
    if raw_image_id is not None:
        item["raw_image_id"] = raw_image_id
    else:
        item["raw_uri"] = raw_uri
    return item


@lru_cache(maxsize=64)  # all images of a run share these fields
def raw_mm_common_fields(
    *, family: str, fingerprint: str, modality: str = "image", vllm_modality: str | None = None
) -> Mapping[str, Any]:
    """Return the fields that the descriptors of all images of one model share.

    Raises:
        DescriptorError: a field is unsafe.
    """
    common_fields: dict[str, Any] = {
        "kind": RAW_MM_ITEM_KIND,
        "version": RAW_MM_ITEM_VERSION,
        "modality": modality,
        "family": family,
        "layout_fingerprint": fingerprint,
    }
    if vllm_modality is not None:
        common_fields["vllm_modality"] = vllm_modality
    _check_common_fields(common_fields, "item")
    return common_fields


def parse_raw_mm_item(item: Any, path: str = "item") -> RawMMItem:
    """Check a descriptor and return its content. `path` is the descriptor's place, for error texts.

    Raises:
        DescriptorError: the item is not a descriptor of version 1, or a field is missing or unsafe.
        ProcessedPayloadError: the item contains an array.
    """
    if not isinstance(item, Mapping):
        raise DescriptorError(f"{path} must be a raw descriptor, but is of type {type(item).__name__}")
    reject_processed(item, path)
    _check_common_fields(item, path)
    raw_image_id, raw_uri = item.get("raw_image_id"), item.get("raw_uri")
    _check_one_source(raw_image_id, raw_uri, path)
    payload = item.get("payload")
    if not isinstance(payload, Mapping):
        raise DescriptorError(f"{path}.payload must be a mapping, but is {_abbreviate(payload)}")
    return RawMMItem(
        modality=item["modality"],
        family=item["family"],
        layout_fingerprint=item["layout_fingerprint"],
        payload=payload,
        raw_image_id=raw_image_id,
        raw_uri=raw_uri,
        vllm_modality=item.get("vllm_modality"),
    )


@dataclass(frozen=True, slots=True)
class ModalitySidecar:
    """The images of one modality in a prompt, as three lists of equal length in the order of the prompt.

    Attributes:
        hashes: the hash of each image.
        placeholders: the placeholder range of each image in the expanded ids.
        items: the raw descriptor of each image.
    """

    hashes: tuple[str, ...]
    placeholders: tuple[PlaceholderRange, ...]
    items: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The images of a prompt: hashes, placeholder ranges and raw descriptors.

    Attributes:
        modalities: the images of each modality, by the modality's name.

    Raises:
        DescriptorError: lists are not parallel, ranges overlap, or a hash or a descriptor is invalid.
        ProcessedPayloadError: a descriptor contains an array.
    """

    modalities: Mapping[str, ModalitySidecar]

    def __post_init__(self) -> None:
        for name, part in self.modalities.items():
            _check_modality(name, part)

    def encode(self) -> dict[str, Any]:
        """Return the sidecar as plain dicts and lists."""
        encoded = {
            name: {
                "hashes": list(part.hashes),
                "placeholders": [
                    {"offset": placeholder.offset, "length": placeholder.length} for placeholder in part.placeholders
                ],
                "items": [dict(item) for item in part.items],
            }
            for name, part in self.modalities.items()
        }
        # Check again, because the items are mappings that may have changed.
        reject_processed(encoded, "sidecar")
        return encoded

    @classmethod
    def decode(cls, encoded: Any) -> Self:
        """Return the sidecar that `encode` encoded, after checking it."""
        reject_processed(encoded, "sidecar")
        if not isinstance(encoded, Mapping):
            raise DescriptorError(f"a sidecar must be a mapping of modalities, but is of type {type(encoded).__name__}")
        return cls({name: _decode_modality(name, part) for name, part in encoded.items()})


def reject_processed(value: Any, path: str = "sidecar") -> None:
    """Refuse arrays, tensors, and the keys for pixels and features, at any depth.

    Allowed values are mappings with string keys, lists, tuples, strings, numbers, booleans and None.

    Raises:
        ProcessedPayloadError: a key or a value is refused; the error has its path.
    """
    offence = _find_processed(value, 0)
    if offence is not None:
        raise ProcessedPayloadError(path + offence[0], offence[1])


def require_safe(value: Any, pattern: re.Pattern[str], path: str) -> None:
    """Raise DescriptorError if a field is not a string that matches this pattern of safe characters."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise DescriptorError(f"{path} must match {pattern.pattern}, but is {_abbreviate(value)}")


def require_data_uri(value: Any, path: str) -> None:
    """Raise DescriptorError if a value is not a `data:` URI of an image."""
    if not isinstance(value, str) or find_data_uri_payload(value) is None:
        raise DescriptorError(f"{path} must be a data:image/<type>;base64,… URI, but is {_abbreviate(value)}")


def _check_one_source(raw_image_id: Any, raw_uri: Any, path: str) -> None:
    """Raise DescriptorError if not exactly one of the two is set, or if the one that is set is not valid."""
    if (raw_image_id is None) == (raw_uri is None):
        raise DescriptorError(f"{path} must have exactly one of raw_image_id and raw_uri")
    if raw_image_id is not None:
        require_safe(raw_image_id, SAFE_NAME, f"{path}.raw_image_id")
    else:
        require_data_uri(raw_uri, f"{path}.raw_uri")


def _check_common_fields(item: Mapping[str, Any], path: str) -> None:
    if item.get("kind") != RAW_MM_ITEM_KIND or item.get("version") != RAW_MM_ITEM_VERSION:
        raise DescriptorError(
            f"{path} must have kind {RAW_MM_ITEM_KIND!r} and version {RAW_MM_ITEM_VERSION}, but has "
            f"{_abbreviate(item.get('kind'))} and {_abbreviate(item.get('version'))}"
        )
    for key, pattern in (("modality", SAFE_NAME), ("family", SAFE_NAME), ("layout_fingerprint", SAFE_FINGERPRINT)):
        require_safe(item.get(key), pattern, f"{path}.{key}")
    if item.get("vllm_modality") is not None:
        require_safe(item["vllm_modality"], SAFE_NAME, f"{path}.vllm_modality")


def _check_modality(name: str, part: ModalitySidecar) -> None:
    path = f"sidecar.{name}"
    require_safe(name, SAFE_NAME, path)
    counts = len(part.hashes), len(part.placeholders), len(part.items)
    if len(set(counts)) != 1:
        raise DescriptorError(f"{path} must have equally many hashes, placeholders and items, but has {counts}")
    previous_end = 0
    for index, (hash_, placeholder, item) in enumerate(zip(part.hashes, part.placeholders, part.items, strict=True)):
        require_safe(hash_, SAFE_HASH, f"{path}.hashes[{index}]")
        if placeholder.offset < previous_end or placeholder.length <= 0:
            raise DescriptorError(
                f"{path}.placeholders[{index}] has {placeholder.length} tokens at {placeholder.offset}; expected at "
                f"least one token, at {previous_end} or later, where the previous range ends"
            )
        previous_end = placeholder.offset + placeholder.length
        if parse_raw_mm_item(item, f"{path}.items[{index}]").modality != name:
            raise DescriptorError(f"{path}.items[{index}].modality must be {name!r}, but is {item['modality']!r}")


def _decode_modality(name: str, part: Any) -> ModalitySidecar:
    path = f"sidecar.{name}"
    if not isinstance(part, Mapping):
        raise DescriptorError(f"{path} must be a mapping, but is of type {type(part).__name__}")
    return ModalitySidecar(
        hashes=tuple(_require_list(part, "hashes", path)),
        placeholders=tuple(
            PlaceholderRange(
                _require_integer(encoded_range, "offset", item_path),
                _require_integer(encoded_range, "length", item_path),
            )
            for index, encoded_range in enumerate(_require_list(part, "placeholders", path))
            for item_path in [f"{path}.placeholders[{index}]"]
        ),
        items=tuple(_require_list(part, "items", path)),
    )


def _require_list(mapping: Mapping[str, Any], key: str, path: str) -> Sequence[Any]:
    value = mapping.get(key)
    if not isinstance(value, list | tuple):
        raise DescriptorError(f"{path}.{key} must be a list, but is {_abbreviate(value)}")
    return value


def _require_integer(mapping: Any, key: str, path: str) -> int:
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise DescriptorError(f"{path} must have an offset and a length, but is {_abbreviate(mapping)}")
    return value


def _find_processed(value: Any, depth: int) -> tuple[str, str] | None:
    """Return the path and the description of a refused key or value in `value`; None if nothing is refused."""
    value_type = type(value)
    if value_type in _PLAIN_TYPES:
        return None
    if depth == _MAX_DEPTH:
        return "", f"is nested deeper than {_MAX_DEPTH} levels"
    if value_type is dict:
        return _find_processed_in_mapping(value, depth)
    if value_type is list or isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            if type(inner) not in _PLAIN_TYPES and (inner_offence := _find_processed(inner, depth + 1)):
                return f"[{index}]{inner_offence[0]}", inner_offence[1]
        return None
    if isinstance(value, Mapping):
        return _find_processed_in_mapping(value, depth)
    # Subclasses of plain types are allowed, except numpy's scalars, of which some inherit from Python's numbers.
    if isinstance(value, str | int | float) and value_type.__module__ != "numpy":
        return None
    return "", f"is a {value_type.__module__}.{value_type.__qualname__}"


def _find_processed_in_mapping(value: Mapping[Any, Any], depth: int) -> tuple[str, str] | None:
    if "dtype" in value and "shape" in value:
        return "", "is an encoded array (it has a dtype and a shape)"
    for key, inner in value.items():
        if not isinstance(key, str):
            return "", f"has a key that is not a string: {_abbreviate(key)}"
        if key in PROCESSED_KEYS:
            return f".{key}", "is a processed payload"
        if _is_array_tag(key, inner):
            return f".{key[:100]}", "tags an encoded array"
        if type(inner) not in _PLAIN_TYPES and (inner_offence := _find_processed(inner, depth + 1)):
            return f".{key[:100]}{inner_offence[0]}", inner_offence[1]
    return None


def _is_array_tag(key: str, value: Any) -> bool:
    if key.startswith("__") and _ARRAY_TAG.fullmatch(key):
        return True
    return key in _TAG_KEYS and isinstance(value, str) and _ARRAY_TAG.fullmatch(value) is not None


def _abbreviate(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else repr(value[:80])
    return text if len(text) <= 100 else text[:97] + "..."
