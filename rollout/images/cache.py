"""Images that this process has already looked at, by the URL that messages carry.

A conversation is prepared again on every turn. A URL that is known costs one look-up: no hash of its bytes and no
access to its file. `file://` URLs are known by value; `data:` URIs, which may have a million characters, by being the
very same object, because even hashing the text would cost a tenth of what looking at the image costs.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageAsset:
    """What is known of one image.

    Attributes:
        url: the canonical one.
        mm_hash: the image's name on the wire to the engine, the first half of its sha256.
        width: as displayed; `height` likewise.
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
        """The image of this URL, if it was looked at before."""
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
