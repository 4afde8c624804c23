"""Reads the bytes of the image that a reference names, and checks their hash."""

import hashlib
from dataclasses import dataclass

import pybase64

from .contract.data_uris import find_data_uri_payload
from .errors import InvalidImageRef
from .image_config import ServerImageConfig
from .references import CheckedReference

MAX_IMAGE_BYTES = 64 * 1024 * 1024
"""The maximum size of an encoded image, in bytes."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The bytes of an image file and their hash.

    Attributes:
        sha256: the SHA-256 of `data`, 64 hex digits.
        data: the bytes of the image file.
    """

    sha256: str
    data: bytes


def read_encoded_image(reference: CheckedReference, image_config: ServerImageConfig) -> EncodedImage:
    """Read the image of a reference. Every request reads it, because only the bytes prove that the hash is right.

    Raises:
        InvalidImageRef: the image cannot be read, or its hash differs from the reference.
        MaterialisationFailed: the file system failed.
    """
    try:
        data = _read_bytes(reference, image_config)
    except InvalidImageRef as error:
        raise error.for_param(reference.param) from error
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(reference.ref.mm_hash):
        raise InvalidImageRef(
            f"the reference has the hash {reference.ref.mm_hash}, but the bytes of its image have the hash {digest}",
            reference.param,
        )
    return EncodedImage(digest, data)


def _read_bytes(reference: CheckedReference, image_config: ServerImageConfig) -> bytes:
    ref = reference.ref
    if ref.raw_uri is not None:
        return _decode_data_uri(ref.raw_uri)
    if image_config.files is None:
        raise InvalidImageRef(
            "this server does not read files, because it was started without --allowed-local-media-path"
        )
    assert ref.raw_image_id is not None, "a reference has a raw_uri or a raw_image_id"
    return image_config.files.read(ref.run_id, ref.raw_image_id, MAX_IMAGE_BYTES)


def _decode_data_uri(uri: str) -> bytes:
    payload = find_data_uri_payload(uri)
    assert payload is not None, "RawMMRef has checked the URI"
    if len(uri) - payload > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise InvalidImageRef(f"the image has more than {MAX_IMAGE_BYTES} bytes; send a smaller one")
    try:
        return pybase64.b64decode(uri[payload:], validate=True)
    except ValueError as error:
        raise InvalidImageRef(f"the data URI is not strict base64: {error}") from error
