"""Limits the memory that a process uses for decoding images, and computes the memory that one image needs.

    memory = shared_decoding_memory(limit)
    with memory.hold(decoding_bytes(...)):
        ...  # decode

A small file can contain many pixels. So the limit is on the memory of all images that are decoded at the same time, not
on their number. Requests get memory in their order, so small images cannot delay a large one without end.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache

from .errors import AdapterError

DEFAULT_DECODING_MEMORY = 3 << 29
"""The default limit in bytes: enough for any image that a run accepts by default, or for several photos at once."""

_LONGEST_WAIT = 600.0
_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2}
_MODES_WITH_ALPHA = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_FIXED_BYTES = 1 << 20
# A lossless WebP may have code tables for each block of 4×4 pixels. The smallest tables take half of these bytes in
# memory, and three bytes in the file. Larger tables take more bytes of both.
_WEBP_TABLE_BYTES, _WEBP_MAX_TABLES = 12_000, 1 << 16


class DecodingMemoryError(AdapterError):
    """The memory for decoding an image did not become free in time."""


class DecodingMemory:
    """A limit on the memory of all images that are decoded at the same time. It is thread-safe.

    Attributes:
        limit: the limit in bytes. A single request must not be larger.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = 0
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, n_bytes: int, stop: "Future[None] | None" = None) -> Iterator[None]:
        """Wait until `n_bytes` are free, and reserve them for the `with` block.

        Raises:
            DecodingMemoryError: the memory did not become free in time, or before `stop` got a result.
        """
        admission = self._ask(n_bytes)
        try:
            wait([admission] if stop is None else [admission, stop], _LONGEST_WAIT, FIRST_COMPLETED)
            if not admission.done():
                raise _wait_error(n_bytes, self.limit)
            yield
        finally:
            self._leave(n_bytes, admission)

    @asynccontextmanager
    async def hold_async(self, n_bytes: int) -> AsyncIterator[None]:
        """Do the same as `hold`, but on an event loop. A cancelled request no longer waits."""
        admission = self._ask(n_bytes)
        try:
            try:
                await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(admission)), _LONGEST_WAIT)
            except TimeoutError:
                raise _wait_error(n_bytes, self.limit) from None
            yield
        finally:
            self._leave(n_bytes, admission)

    def _ask(self, n_bytes: int) -> "Future[None]":
        if n_bytes > self.limit:
            raise ValueError(
                f"{n_bytes} bytes are more than the limit of {self.limit}; compare the size with `limit` first"
            )
        admission: Future[None] = Future()
        with self._lock:
            self._waiting.append((n_bytes, admission))
            self._admit()
        return admission

    def _leave(self, n_bytes: int, admission: "Future[None]") -> None:
        with self._lock:
            if admission.done():
                self._held -= n_bytes
            else:
                self._waiting.remove((n_bytes, admission))
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._held + self._waiting[0][0] <= self.limit:
            n_bytes, admission = self._waiting.popleft()
            self._held += n_bytes
            admission.set_result(None)


@lru_cache(maxsize=8)
def shared_decoding_memory(limit: int = DEFAULT_DECODING_MEMORY) -> DecodingMemory:
    """Return the `DecodingMemory` with this limit, which all callers in the process share."""
    return DecodingMemory(limit)


def decoding_bytes(data: bytes, *, image_format: str | None, mode: str, pixels: int, transparency: bool) -> int:
    """Return the maximum memory in bytes that Pillow needs to convert an encoded image to upright RGB pixels.

    Args:
        data: the encoded image.
        image_format: Pillow's name for the format of the image; None if it is not known.
        mode: the mode in which Pillow opens the image.
        pixels: the width of the image times its height.
        transparency: whether the metadata of the image name a transparent colour.
    """
    stored = _BYTES_PER_PIXEL.get(mode, 4)
    # Bytes per pixel in two steps. Step 1: the decoded image and its upright copy. Step 2: this copy and its
    # conversion.
    turned, converted, fixed = 2 * stored, stored, _FIXED_BYTES
    if mode in _MODES_WITH_ALPHA or (transparency and mode != "RGB"):
        converted += (0 if mode == "RGBA" else 4) + 4 + 1  # RGBA, the white background, the mask
    elif mode != "RGB":
        converted += 4
    if image_format == "GIF":
        turned += stored  # Pillow keeps the first frame for the second one
    elif image_format in ("JPEG", "MPO"):
        # With several scans, libjpeg keeps the coefficients of the whole image, two bytes for each value.
        turned = max(turned, stored + 2 * (4 if mode == "CMYK" else 3))
    elif image_format == "WEBP":
        turned += 8  # libwebp keeps two canvases with 4 bytes per pixel
        fixed += len(data)
        if data[12:16] != b"VP8 ":
            fixed += _WEBP_TABLE_BYTES * min(_WEBP_MAX_TABLES, pixels // 16, len(data) // 6)
    return max(turned, converted) * pixels + fixed


def _wait_error(n_bytes: int, limit: int) -> DecodingMemoryError:
    return DecodingMemoryError(
        f"decoding an image needs {n_bytes:,} bytes of memory, which did not become free within {_LONGEST_WAIT:.0f} s; "
        f"all images may use {limit:,} bytes. Raise this limit, or decode fewer images at the same time"
    )
