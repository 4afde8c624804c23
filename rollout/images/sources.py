"""Turns an image in a message (a URL, bytes or a Pillow image) into encoded bytes."""

from io import BytesIO
from pathlib import PurePath
from typing import Any

import pybase64
from PIL import Image

from renderers_adapter.data_uris import find_data_uri_payload
from rollout.images.errors import ImageError
from rollout.images.pixels import turn_upright
from rollout.images.policy import describe_too_many_bytes
from rollout.records.wrong_types import describe_wrong_type

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})


def decode_data_uri(url: str, max_bytes: int) -> bytes:
    """Return the bytes of a `data:image/…;base64,…` URI, decoded as strictly as in the engine.

    Raises:
        ImageError: it has another media type or encoding, is not base64, or has more than `max_bytes`.
    """
    payload = find_data_uri_payload(url)
    if payload is None:
        raise ImageError(f"a data: URI must begin with data:image/<type>;base64, but begins with {url[:40]!r}")
    n_bytes = (len(url) - payload) // 4 * 3
    if n_bytes > max_bytes + 3:
        raise ImageError(f"the image has about {describe_too_many_bytes(n_bytes, max_bytes)}")
    try:
        # This is the engine's decoder, which refuses some texts that the standard library's decoder accepts.
        return pybase64.b64decode(url[payload:], validate=True)
    except ValueError as error:
        raise ImageError(f"the data: URI is not strict base64: {error}") from error


def encode_data_uri(media_type: str, data: bytes) -> str:
    """Return the `data:` URI of an image."""
    return f"data:{media_type};base64,{pybase64.b64encode_as_string(data)}"


def encode_pillow_image(image: Image.Image) -> bytes:
    """Return a Pillow image as PNG, turned upright, as the engine turns an image.

    Raises:
        ImageError: it cannot be loaded or written.
    """
    try:
        upright_image = turn_upright(image)
        if upright_image.mode not in _PNG_MODES:
            upright_image = upright_image.convert("RGBA" if upright_image.has_transparency_data else "RGB")
        buffer = BytesIO()
        # Level 1 makes larger files, and is several times faster.
        upright_image.save(buffer, "PNG", compress_level=1)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"the Pillow image cannot be written as PNG: {error}") from error
    return buffer.getvalue()


def describe_rejected_source(source: Any) -> str:
    """Return the text of an error that says why a source is not an image, and what to write instead."""
    if source is None:
        return "the image is missing"
    if not isinstance(source, str):
        return f"the image is {describe_wrong_type(source)}; {_conversion_of(source)}"
    if not source:
        return "the image's URL is empty"
    scheme, separator, _ = source[:100].partition(":")
    if separator and scheme.lower() in ("http", "https"):
        return f"the scheme {scheme}: is not accepted: images are not fetched; give its bytes or a Pillow image"
    if separator and scheme.isidentifier():
        return f"the scheme {scheme}: is not accepted; give the image as a data: URI or a file:// URL"
    return (
        f"{source[:60]!r} is neither a data: URI nor a file:// URL; for a path write Image.open(path), and before "
        "base64 write data:image/png;base64,"
    )


def _conversion_of(source: Any) -> str:
    """Say how to convert an image of another library."""
    package = type(source).__module__.partition(".")[0]
    if package == "torch":
        return "write torchvision.transforms.functional.to_pil_image(tensor)"
    if package == "numpy":
        return "write Image.fromarray(array), with Image from PIL and values of the type uint8"
    if hasattr(source, "__array__"):
        return "write Image.fromarray(numpy.asarray(array)), with Image from PIL and values of the type uint8"
    if isinstance(source, PurePath):
        return "write Image.open(path), with Image from PIL"
    if hasattr(source, "read"):
        return "write .read() to give its bytes"
    return "a URL, bytes or a Pillow image is expected"
