"""From a reference to the image's bytes, which must have the hash that the reference names."""

import hashlib
from dataclasses import dataclass

import pybase64

from .contract.data_uris import find_data_uri_payload
from .errors import InvalidImageRef
from .image_config import ServerImageConfig
from .references import CheckedReference

MAX_IMAGE_BYTES = 64 * 1024 * 1024
"""The most bytes of one encoded image."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An encoded image.

    Attributes:
        sha256: the hash of `data`, 64 hex digits.
        data: the bytes of the file.
    """

    sha256: str
    data: bytes


def read_encoded_image(reference: CheckedReference, image_config: ServerImageConfig) -> EncodedImage:
    """Read the image again in every request: a reference is trusted only together with its bytes.

    Raises:
        InvalidImageRef: it cannot be read, or has another hash.
        MaterialisationFailed: the file system failed.
    """
    try:
        data = _read_bytes(reference, image_config)
    except InvalidImageRef as error:
        raise error.for_param(reference.param) from error
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(reference.ref.mm_hash):
        raise InvalidImageRef(
            f"the reference is of the image {reference.ref.mm_hash}, its bytes are {digest}", reference.param
        )
    return EncodedImage(digest, data)


def _read_bytes(reference: CheckedReference, image_config: ServerImageConfig) -> bytes:
    ref = reference.ref
    if ref.raw_uri is not None:
        return _decode_data_uri(ref.raw_uri)
    if image_config.files is None:
        raise InvalidImageRef("this server reads no files; it was started without --allowed-local-media-path")
    assert ref.raw_image_id is not None, "a reference has one of the two"
    return image_config.files.read(ref.run_id, ref.raw_image_id, MAX_IMAGE_BYTES)


def _decode_data_uri(uri: str) -> bytes:
    payload = find_data_uri_payload(uri)
    assert payload is not None, "a reference has a source of this form"
    if len(uri) - payload > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise InvalidImageRef(f"the image has more than {MAX_IMAGE_BYTES} bytes")
    try:
        return pybase64.b64decode(uri[payload:], validate=True)
    except ValueError as error:
        raise InvalidImageRef(f"the source is not strict base64: {error}") from error
