"""Finds items with images by their bytes, without a digest of these bytes and without a second copy of them.

A message keeps the URLs of its images anyway. So of its item, only the bytes around these URLs are kept here, and other
bytes are compared with both. That is about three times as fast as a digest. It matters because a program sends all
images of its conversation again at every turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_MAX_BYTES_AROUND = 4096
_EDGE = 64
_STEP = 1021
"""One byte of so many is part of the fingerprint."""
_MIN_TEXT = 256
_MAX_ITEMS = 16_384
_MAX_ALIKE = 8
"""More items with one fingerprint are not kept: a client that made many of them would slow down the whole server."""

_T = TypeVar("_T")
_Fingerprint = tuple[int, bytes, bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Outline(Generic[_T]):
    """An item in pieces: the bytes around its long texts, and these texts.

    Attributes:
        pieces: the pieces in order. A text stands in the item as it is, without escapes.
        result: what was read from the item.
    """

    pieces: Sequence[bytes | str]
    result: _T

    def matches(self, data: bytes) -> bool:
        """Return whether bytes of the item's length are the item."""
        at = 0
        for piece in self.pieces:
            part = piece if isinstance(piece, bytes) else piece.encode()
            if not data.startswith(part, at):
                return False
            at += len(part)
        return True


class LargeItems(Generic[_T]):
    """Remembers what was read from items that consist of long texts for the most part."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._known: dict[_Fingerprint, list[_Outline[_T]]] = {}
        self._count = 0

    def find(self, data: bytes) -> _T | None:
        """Return what was read from these bytes; None if they are not known."""
        for outline in self._known.get(_fingerprint(data), ()):
            if outline.matches(data):
                return outline.result
        return None

    def keep(self, data: bytes, texts: Sequence[str], result: _T) -> bool:
        """Remember what was read from an item.

        Args:
            data: the item.
            texts: the long texts of the item in their order, which the result keeps.
            result: what was read.

        Returns:
            False if it is not remembered: it has too many bytes beside its texts, or too many items look like it.
        """
        pieces = _split(data, texts)
        if sum(len(piece) for piece in pieces if isinstance(piece, bytes)) > _MAX_BYTES_AROUND:
            return False
        if self._count >= _MAX_ITEMS:
            self._known.clear()
            self._count = 0
        alike = self._known.setdefault(_fingerprint(data), [])
        if len(alike) >= _MAX_ALIKE:
            return False
        alike.append(_Outline(pieces, result))
        self._count += 1
        return True


def _fingerprint(data: bytes) -> _Fingerprint:
    """Return what is the same for the same bytes, and mostly another for others. It reads only a few of the bytes."""
    return len(data), data[:_EDGE], data[-_EDGE:], data[::_STEP]


def _split(data: bytes, texts: Sequence[str]) -> list[bytes | str]:
    """Return an item in pieces. A text that stands in it with escapes is not found, and stays a part of the bytes."""
    pieces: list[bytes | str] = []
    at = 0
    for text in texts:
        if len(text) < _MIN_TEXT or not text.isascii():
            continue
        start = data.find(text.encode(), at)
        if start >= 0:
            pieces += (data[at:start], text)
            at = start + len(text)
    return [*pieces, data[at:]]
