"""An image as a message gives it (URL, bytes, Pillow image) to encoded bytes."""

import re
from io import BytesIO
from typing import Any

import pybase64
from PIL import Image

from rollout.images.errors import ImageError
from rollout.images.pixels import turn_upright

_DATA_URI_PREFIX = re.compile(r"data:image/[^;,]{0,100}(?:;[^;,]{0,100}){0,8};base64,")
_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})


def decode_data_uri(url: str, max_bytes: int) -> bytes:
    """The bytes of a `data:image/…;base64,…` URI, decoded as strictly as the engine does.

    Raises:
        ImageError: another media type or encoding, characters that are not base64, or more than `max_bytes`.
    """
    prefix_match = _DATA_URI_PREFIX.match(url)
    if prefix_match is None:
        raise ImageError(f"a data: URI must begin with data:image/<type>;base64, but begins with {url[:40]!r}")
    n_bytes = (len(url) - prefix_match.end()) // 4 * 3
    if n_bytes > max_bytes + 3:
        raise ImageError(f"the image has about {n_bytes} bytes, more than max_bytes {max_bytes}")
    try:
        # The engine's own decoder: it refuses some texts that the standard library's decoder accepts.
        return pybase64.b64decode(url[prefix_match.end() :], validate=True)
    except ValueError as error:
        raise ImageError(f"the data: URI is not strict base64: {error}") from error


def encode_data_uri(media_type: str, data: bytes) -> str:
    """The `data:` URI of an image."""
    return f"data:{media_type};base64,{pybase64.b64encode_as_string(data)}"


def encode_pillow_image(image: Image.Image) -> bytes:
    """A Pillow image as PNG, turned upright as the engine turns the file it may come from.

    Raises:
        ImageError: it cannot be loaded or written.
    """
    try:
        upright_image = turn_upright(image)
        if upright_image.mode not in _PNG_MODES:
            upright_image = upright_image.convert("RGBA" if upright_image.has_transparency_data else "RGB")
        buffer = BytesIO()
        # Speed over size: the file is read back on the same machine, and level 1 is several times faster.
        upright_image.save(buffer, "PNG", compress_level=1)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"the Pillow image cannot be written as PNG: {error}") from error
    return buffer.getvalue()


def describe_rejected_source(source: Any) -> str:
    """Describe a source that is not an image, for the error message."""
    if source is None:
        return "the image is missing"
    if not isinstance(source, str):
        return f"the image is a {type(source).__name__}; a URL, bytes or a Pillow image is expected"
    if not source:
        return "the image's URL is empty"
    scheme, separator, _ = source[:100].partition(":")
    if separator and scheme.isidentifier():
        return f"the scheme {scheme}: is not accepted; give the image as a data: URI or a file:// URL"
    return f"{source[:60]!r} is neither a data: URI nor a file:// URL"
