"""Caches the images that this process has checked, by their URLs in messages.

Each turn prepares the whole conversation again. A cached URL costs one look-up, without hashing bytes or reading a
file. The key of a `file://` URL is its text. A `data:` URI can have a million characters, and hashing them takes 1/10
of the time of checking the image. So the key of a `data:` URI is the identity of the string object.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageAsset:
    """An image that was checked and accepted.

    Attributes:
        url: the canonical URL: a `file://` URL in the run's image directory, or a `data:` URI.
        sha256: the hash of the encoded image, 64 hex digits.
        mm_hash: the first half of `sha256`; requests, messages and records name the image by it.
        file_name: the asset's file name, `<sha256>.<extension>`, even if the image is not stored.
        width: the width of the displayed image in pixels, after the orientation in its metadata is applied.
        height: the height of the displayed image in pixels.
        n_bytes: the size of the encoded image, in bytes.
        media_type: the media type, such as `image/png`.
    """

    url: str
    sha256: str
    mm_hash: str
    file_name: str
    width: int
    height: int
    n_bytes: int
    media_type: str


class AssetCache:
    """Keeps images by URL, and removes the least recently used ones. It is thread-safe."""

    def __init__(self, *, max_entries: int = 65_536, max_characters: int = 16 * 1024 * 1024) -> None:
        self._max_entries = max_entries
        self._max_characters = max_characters
        self._total_characters = 0
        # An entry also keeps the URL object. While the object exists, no other object can have the same identity.
        self._entries: OrderedDict[str | int, tuple[str, ImageAsset]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, url: str) -> ImageAsset | None:
        """Return the image of this URL; None if it is not cached."""
        key = _cache_key(url)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[1]

    def add(self, url: str, asset: ImageAsset) -> None:
        """Add the image of a URL, and remove the oldest entries above the limits."""
        key = _cache_key(url)
        with self._lock:
            if key not in self._entries:
                self._total_characters += len(url)
            self._entries[key] = url, asset
            while len(self._entries) > self._max_entries or self._total_characters > self._max_characters:
                _, (evicted_url, _) = self._entries.popitem(last=False)
                self._total_characters -= len(evicted_url)


def _cache_key(url: str) -> str | int:
    return id(url) if url.startswith("data:") else url
