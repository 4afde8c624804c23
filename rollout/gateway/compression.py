"""Reads compressed bodies of requests up to a limit, so that a small body cannot become a huge one in memory."""

import zlib

from rollout.gateway.dialects.base import RequestRefused

_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32
_KNOWN_ENCODINGS = ("gzip", "x-gzip", "deflate")


class BodyDecompressor:
    """Decompresses one body, part by part."""

    def __init__(self, encoding: str) -> None:
        """Begin to read a body with this `Content-Encoding`. Raises RequestRefused for an unknown one."""
        if encoding not in ("", "identity", *_KNOWN_ENCODINGS):
            raise RequestRefused(
                "The body has a Content-Encoding that the gateway cannot read; send it without compression. It reads "
                f"{', '.join(_KNOWN_ENCODINGS)}."
            )
        self._is_plain = encoding not in _KNOWN_ENCODINGS
        self._stream = zlib.decompressobj(_ZLIB_OR_GZIP)

    def read(self, data: bytes, limit: int) -> bytes:
        """Return what a part of the body says, at most one byte more than `limit`. Raises RequestRefused."""
        if self._is_plain:
            return data
        try:
            return self._stream.decompress(data, limit + 1)
        except zlib.error:
            raise RequestRefused("The body cannot be decompressed, because its bytes are damaged.") from None

    def require_end(self) -> None:
        """Raise RequestRefused if the body ends too early."""
        if not self._is_plain and not self._stream.eof:
            raise RequestRefused("The body ends before the end of its compressed data.")
