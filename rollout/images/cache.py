"""Remembers the images that this process has checked, by the URL in the messages.

A conversation is prepared again on every turn. A cached URL costs one look-up: no hash of its bytes and no access to
its file. The key of a `file://` URL is its text. A `data:` URI may have a million characters, and hashing them takes a
tenth of the time of checking the image. So its key is the identity of the string object.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageAsset:
    """A checked image.

    Attributes:
        url: its canonical URL: `file://` in the run's image directory, or a `data:` URI.
        sha256: the hash of its encoded bytes, 64 hex digits.
        mm_hash: the first half of its sha256, by which requests, messages and records name the image.
        file_name: its name as an asset, `<sha256>.<extension>`, whether or not it is stored as one.
        width: its width in pixels as displayed, after the orientation in its metadata is applied.
        height: its height in pixels as displayed.
        n_bytes: the number of its encoded bytes.
        media_type: its media type, such as `image/png`.
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
    """Keeps images by URL, and forgets the least recently used URLs; threads may share it."""

    def __init__(self, *, max_entries: int = 65_536, max_characters: int = 16 * 1024 * 1024) -> None:
        self._max_entries = max_entries
        self._max_characters = max_characters
        self._total_characters = 0
        # The URL is kept with its asset: as long as it exists, no other object can have its identity.
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
        """Remember the image of a URL, and forget old ones above the limits."""
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
