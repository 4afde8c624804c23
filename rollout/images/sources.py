"""Converts an image in a message (a URL, bytes or a Pillow image) to encoded bytes."""

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
    """Return the bytes of a `data:image/…;base64,…` URI. The decoder is as strict as the engine's.

    Raises:
        ImageError: the URI has another media type or encoding, is not valid base64, or has more than `max_bytes`.
    """
    payload = find_data_uri_payload(url)
    if payload is None:
        raise ImageError(f"a data: URI must begin with data:image/<type>;base64, but begins with {url[:40]!r}")
    n_bytes = (len(url) - payload) // 4 * 3
    if n_bytes > max_bytes + 3:
        raise ImageError(f"the image has about {describe_too_many_bytes(n_bytes, max_bytes)}")
    try:
        # The engine uses this decoder, too. It refuses some texts that the standard library's decoder accepts.
        return pybase64.b64decode(url[payload:], validate=True)
    except ValueError as error:
        raise ImageError(f"the data: URI is not strict base64: {error}") from error


def encode_data_uri(media_type: str, data: bytes) -> str:
    """Return the `data:` URI of an image."""
    return f"data:{media_type};base64,{pybase64.b64encode_as_string(data)}"


def encode_pillow_image(image: Image.Image) -> bytes:
    """Return a Pillow image as PNG. It is turned upright, as the engine does it.

    Raises:
        ImageError: the image cannot be loaded or written.
    """
    try:
        upright_image = turn_upright(image)
        if upright_image.mode not in _PNG_MODES:
            upright_image = upright_image.convert("RGBA" if upright_image.has_transparency_data else "RGB")
        buffer = BytesIO()
        # Level 1 is several times faster than the default, but makes larger files.
        upright_image.save(buffer, "PNG", compress_level=1)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"the Pillow image cannot be written as PNG: {error}") from error
    return buffer.getvalue()


def describe_rejected_source(source: Any) -> str:
    """Return an error text that says why a source is not accepted as an image, and what to write instead."""
    if source is None:
        return "the image is missing"
    if not isinstance(source, str):
        return f"the image is {describe_wrong_type(source)}; {_conversion_of(source)}"
    if not source:
        return "the image's URL is empty"
    scheme, separator, _ = source[:100].partition(":")
    if separator and scheme.lower() in ("http", "https"):
        return f"the scheme {scheme}: is not accepted; download the image and give its bytes"
    if separator and scheme.isidentifier():
        return f"the scheme {scheme}: is not accepted; give the image as a data: URI or a file:// URL"
    return (
        f"{source[:60]!r} is neither a data: URI nor a file:// URL; for a path, write Image.open(path); for base64, "
        "put data:image/png;base64, before it"
    )


def _conversion_of(source: Any) -> str:
    """Return the part of an error text that says how to convert an image of another library."""
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
    return "expected a URL, bytes or a Pillow image"
