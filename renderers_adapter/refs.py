"""Reads and writes references, which name an image and its layout in a request. A plugin of the engine resolves them.

    mmraw:v2:<run_id>:<family>:<fingerprint>:<modality>:<mm_hash>:<raw_image_id>:<payload64>
    mmraw:v3:<json64>

`format_ref` writes version 3, and `parse_ref` reads both versions. The fields of a `RawMMRef` are checked when it is
created. But `..` is a valid `raw_image_id`, so code that uses it in a path must check where the path leads.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Never

from .descriptors import (
    SAFE_FINGERPRINT,
    SAFE_HASH,
    SAFE_NAME,
    DescriptorError,
    reject_processed,
    require_data_uri,
    require_safe,
)
from .errors import AdapterError

_V2_PREFIX, _V3_PREFIX = "mmraw:v2:", "mmraw:v3:"


class RefError(AdapterError):
    """A reference is malformed, or one of its fields is unsafe. The message names the field."""


@dataclass(frozen=True, slots=True)
class RawMMRef:
    """The content of a reference.

    Attributes:
        run_id: the id of the run that the image belongs to.
        family: the family of the image's geometry.
        fingerprint: the layout fingerprint of the geometry.
        modality: the kind of input: `image`, or vLLM's name for images.
        mm_hash: the hash of the image in the request: the first digits of the SHA-256 of its bytes.
        payload: the data that the geometry defines: the grid of the image.
        raw_image_id: the file name of the image; None if only `raw_uri` is set.
        raw_uri: the image itself as a `data:` URI; None if only `raw_image_id` is set.

    Raises:
        RefError: a field is unsafe, the payload contains an array, or `raw_image_id` and `raw_uri` are both None.
    """

    run_id: str
    family: str
    fingerprint: str
    modality: str
    mm_hash: str
    payload: Mapping[str, Any]
    raw_image_id: str | None = None
    raw_uri: str | None = None

    def __post_init__(self) -> None:
        try:
            for name in ("run_id", "family", "modality"):
                require_safe(getattr(self, name), SAFE_NAME, name)
            require_safe(self.fingerprint, SAFE_FINGERPRINT, "fingerprint")
            require_safe(self.mm_hash, SAFE_HASH, "mm_hash")
            if self.raw_image_id is None and self.raw_uri is None:
                raise RefError("a reference must have a raw_image_id or a raw_uri")
            if self.raw_image_id is not None:
                require_safe(self.raw_image_id, SAFE_NAME, "raw_image_id")
            if self.raw_uri is not None:
                require_data_uri(self.raw_uri, "raw_uri")
            if not isinstance(self.payload, Mapping):
                raise RefError(f"payload must be a mapping, but is of type {type(self.payload).__name__}")
            reject_processed(self.payload, "payload")
        except DescriptorError as error:
            raise RefError(f"invalid image reference: {error}") from error


def parse_ref(text: str) -> RawMMRef:
    """Return the content of a reference of version 2 or 3.

    Raises:
        RefError: the text is not a reference, or a field is invalid.
    """
    if not isinstance(text, str):
        raise RefError(f"an image reference must be a string, but is of type {type(text).__name__}")
    if text.startswith(_V3_PREFIX):
        return _from_fields(_decode_json(text[len(_V3_PREFIX) :], "v3 reference"))
    if not text.startswith(_V2_PREFIX):
        raise RefError(
            f"an image reference must begin with {_V3_PREFIX} or {_V2_PREFIX}, but begins with {text[:20]!r}"
        )
    parts = text.split(":")
    if len(parts) != 9:
        raise RefError(f"a v2 image reference must have 9 parts, but has {len(parts)}")
    run_id, family, fingerprint, modality, mm_hash, raw_image_id, payload = parts[2:]
    return RawMMRef(
        run_id=run_id,
        family=family,
        fingerprint=fingerprint,
        modality=modality,
        mm_hash=mm_hash,
        payload=_decode_json(payload, "payload of the v2 reference"),
        raw_image_id=raw_image_id,
    )


def format_ref(ref: RawMMRef) -> str:
    """Return the text of a reference, in version 3.

    Raises:
        RefError: the payload contains a value that JSON cannot write, such as NaN.
    """
    fields = {
        "run_id": ref.run_id,
        "family": ref.family,
        "fingerprint": ref.fingerprint,
        "modality": ref.modality,
        "mm_hash": ref.mm_hash,
        "payload": dict(ref.payload),
    }
    sources = {"raw_image_id": ref.raw_image_id, "raw_uri": ref.raw_uri}
    fields.update({key: value for key, value in sources.items() if value is not None})
    try:
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RefError(f"the payload of an image reference cannot be written as JSON: {error}") from error
    return _V3_PREFIX + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _from_fields(fields: Mapping[str, Any]) -> RawMMRef:
    required = ("run_id", "family", "fingerprint", "modality", "mm_hash", "payload")
    missing = [name for name in required if name not in fields]
    if missing:
        raise RefError(f"a v3 image reference must have the fields {', '.join(missing)}")
    return RawMMRef(
        **{name: fields[name] for name in required},
        raw_image_id=fields.get("raw_image_id"),
        raw_uri=fields.get("raw_uri"),
    )


def _decode_json(encoded: str, description: str) -> dict[str, Any]:
    try:
        # base64url has no `+` and `/`, and references have no padding.
        if any(foreign in encoded for foreign in "+/="):
            raise RefError(f"the {description} is not base64url without padding")
        padded = encoded.replace("-", "+").replace("_", "/") + "=" * (-len(encoded) % 4)
        value = json.loads(binascii.a2b_base64(padded, strict_mode=True), parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise RefError(f"the {description} is not base64url of JSON: {str(error)[:100]}") from error
    if not isinstance(value, dict):
        raise RefError(f"the {description} must be a JSON object, but is of type {type(value).__name__}")
    return value


def _reject_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")
