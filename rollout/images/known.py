"""Images that this process has already looked at, by the URL that messages carry.

A conversation is prepared again on every turn. A URL that is known costs one look-up: no hash of its bytes and no
access to its file. Python keeps the hash of a string and compares by identity first, so that the same `data:` URI
object costs no more than a short name.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Asset:
    """What is known of one image: `url` is the canonical one, `width` and `height` are as displayed."""

    url: str
    sha256: str
    file_name: str
    width: int
    height: int
    n_bytes: int
    media_type: str


class KnownImages:
    """A cache that forgets the least recently used URLs; safe to share between threads."""

    def __init__(self, *, max_entries: int = 65_536, max_characters: int = 128 * 1024 * 1024) -> None:
        self._max_entries = max_entries
        self._max_characters = max_characters
        self._characters = 0
        self._assets: OrderedDict[str, Asset] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, url: str) -> Asset | None:
        """The image of this URL, if it was looked at before."""
        with self._lock:
            asset = self._assets.get(url)
            if asset is not None:
                self._assets.move_to_end(url)
            return asset

    def add(self, url: str, asset: Asset) -> None:
        """Remember a URL, and forget old ones to keep within bounds."""
        with self._lock:
            if url not in self._assets:
                self._characters += len(url)
            self._assets[url] = asset
            while len(self._assets) > self._max_entries or self._characters > self._max_characters:
                forgotten, _ = self._assets.popitem(last=False)
                self._characters -= len(forgotten)
