"""Images that this process has already checked, by the URL that messages carry.

A conversation is prepared again on every turn. A cached URL costs one look-up: no hash of its bytes and no access to
its file. The key of a `file://` URL is its text. The key of a `data:` URI, which may have a million characters, is the
identity of the string object, because even hashing the text would cost a tenth of checking the image.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageAsset:
    """What is known of one image.

    Attributes:
        url: its canonical URL.
        sha256: the hash of its encoded bytes, 64 hex digits.
        mm_hash: the image's name in requests to the engine, the first half of its sha256.
        file_name: its name as an asset, whether or not it is stored as one.
        width: its width as displayed, after orientation.
        height: its height as displayed, after orientation.
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
    """A cache that forgets the least recently used URLs; safe to share between threads."""

    def __init__(self, *, max_entries: int = 65_536, max_characters: int = 16 * 1024 * 1024) -> None:
        self._max_entries = max_entries
        self._max_characters = max_characters
        self._total_characters = 0
        # The URL is kept with its asset: as long as it lives, no other object can have its identity.
        self._entries: OrderedDict[str | int, tuple[str, ImageAsset]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, url: str) -> ImageAsset | None:
        """The image of this URL, if it is cached."""
        key = _cache_key(url)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[1]

    def add(self, url: str, asset: ImageAsset) -> None:
        """Remember a URL, and forget old ones to keep within bounds."""
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
