"""What a JPEG's markers tell without decoding a pixel.

A baseline JPEG whose tables and single scan obey every rule on which libjpeg gives up can always be decoded: what is
wrong in the compressed data libjpeg conceals with a warning. For such a file, nearly every one there is, the header is
proof enough. Whatever is in any way unusual (progressive, CMYK, EXIF, several scans or images) is left to the decoder.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rollout.images.errors import ImageError

# Inside a scan, 0xFF is followed by 0x00 (a literal), by a restart marker, or by the marker that ends the scan.
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_FRAME = struct.Struct(">BHHB")

_DHT, _SOI, _EOI, _SOS, _DQT, _DRI = 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD
_COMMENT, _JFIF, _MULTI_PICTURE, _ADOBE = 0xFE, 0xE0, 0xE2, 0xEE
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_HUFFMAN_SEQUENTIAL = frozenset({0xC0, 0xC1})
_WITHOUT_LENGTH = frozenset({0x00, 0x01, _SOI, *range(0xD0, 0xD8)})

_HUFFMAN_KINDS = frozenset({0x00, 0x01, 0x02, 0x03, 0x10, 0x11, 0x12, 0x13})
# Luma sampling factors for which a 3-component frame is common and valid; chroma is then 1×1.
_LUMA_SAMPLING = frozenset({0x11, 0x21, 0x12, 0x22, 0x41})
_LONGEST_SIDE = 65_500  # libjpeg's own limit
_MOST_PICTURES = 64  # of one file; a phone writes two or three
_MOST_SEGMENTS = 10_000  # of one image; a progressive one with metadata has some dozens

# Headers of one encoder at one size are alike to the byte; long ones carry metadata, and differ.
_CACHED_HEADER_BYTES = 2_048


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The stored size (before orientation), and whether the markers alone prove that the file decodes."""

    width: int
    height: int
    proven: bool


@dataclass(frozen=True, slots=True)
class _Opening:
    """All segments up to the first scan: `usual` if libjpeg cannot refuse what they define."""

    width: int
    height: int
    blocks: int
    usual: bool
    multi_picture: bool


def read_jpeg(data: bytes) -> JpegHeader:
    """Walk every marker of the file.

    Raises:
        ImageError: the file is cut short, has no size, or bytes follow its end.
    """
    try:
        start = _first_scan(data, 0)
        read = _read_opening_cached if start <= _CACHED_HEADER_BYTES else _read_opening
        opening = read(data[:start])
        end, scan_bytes = _image_end(data, start)
        # A multi-picture file is a row of complete JPEGs; nothing else may follow the first.
        for _ in range(_MOST_PICTURES if opening.multi_picture else 0):
            if data[end : end + 2] != b"\xff\xd8":
                break
            end, _ = _image_end(data, _first_scan(data, end))
    except (IndexError, struct.error):
        raise ImageError("the JPEG is cut short") from None
    if data[end:].strip(b"\0"):
        raise ImageError(f"{len(data) - end} bytes follow the end of the JPEG, which could hide a second file")
    proven = opening.usual and scan_bytes is not None
    # Every block takes at least one code for its mean and one for its end, each of a bit or more.
    if proven and scan_bytes is not None and scan_bytes * 8 < opening.blocks * 2:
        raise ImageError(
            f"the JPEG is cut short: {scan_bytes} bytes cannot hold {opening.width}×{opening.height} pixels"
        )
    return JpegHeader(opening.width, opening.height, proven)


def _first_scan(data: bytes, image: int) -> int:
    """The offset of the first compressed byte of the image that begins at `image`."""
    for marker, _, end in _segments(data, image + 2):
        if marker == _SOS:
            return end
        if marker == _EOI:
            break
    raise ImageError("the JPEG ends before its pixels")


def _image_end(data: bytes, scan: int) -> tuple[int, int | None]:
    """The offset after the end marker, and the bytes of the scan if there is only one and nothing after it."""
    marker_at = _first_scan_end(data, scan)
    if data[marker_at + 1] == _EOI:
        return marker_at + 2, marker_at - scan
    for _ in range(_MOST_SEGMENTS):
        for marker, _, end in _segments(data, marker_at):
            if marker == _EOI:
                return end, None
            if marker == _SOS:
                marker_at = _scan_end(data, end)
                break
    raise _crumbled()


def _first_scan_end(data: bytes, position: int) -> int:
    # Literals aside, the end is nearly always the first 0xFF; finding it this way costs a third of the expression.
    ahead = np.frombuffer(data, np.uint8, offset=position)
    candidates = (ahead[:-1] == 0xFF) & (ahead[1:] != 0x00)
    return _scan_end(data, position + (int(candidates.argmax()) if len(candidates) else 0))


def _scan_end(data: bytes, position: int) -> int:
    """The offset of the marker that ends the scan which continues here."""
    found = _SCAN_END.search(data, position)
    if found is None:
        raise ImageError("the JPEG is cut short: its end marker is missing")
    return found.start()


def _crumbled() -> ImageError:
    return ImageError("the JPEG is cut into more pieces than any encoder makes")


def _segments(data: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment from here on; the last is the end marker of the image."""
    for _ in range(_MOST_SEGMENTS):
        if data[position] != 0xFF:
            raise ImageError(f"the JPEG has no marker at byte {position}, where one must be")
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == _EOI:
            yield marker, position + 2, position + 2
            return
        if marker in _WITHOUT_LENGTH:
            raise ImageError(f"the JPEG has a misplaced marker at byte {position}")
        start = position + 4
        position += 2 + (data[position + 2] << 8 | data[position + 3])
        if not start <= position <= len(data):
            raise ImageError("the JPEG is cut short")
        yield marker, start, position
    raise _crumbled()


def _read_opening(header: bytes) -> _Opening:
    frame = None
    quantisation: set[int] = set()
    huffman: set[int] = set()
    usual, multi_picture = True, False
    for marker, start, end in _segments(header, 2):
        body = header[start:end]
        if marker in _FRAMES:
            if frame is not None:
                raise ImageError("the JPEG declares its size twice")
            frame = _Frame(marker, body)
        elif marker == _DHT:
            usual &= _define(huffman, _huffman_tables(body))
        elif marker == _DQT:
            usual &= _define(quantisation, _quantisation_tables(body))
        elif marker == _SOS:
            break
        elif marker == _DRI:
            usual &= len(body) == 2
        elif marker == _JFIF:
            usual &= body.startswith(b"JFIF\0") and len(body) == 14
        elif marker == _ADOBE:
            usual &= body.startswith(b"Adobe") and len(body) == 12
        elif marker != _COMMENT:
            usual = False
            multi_picture |= marker == _MULTI_PICTURE and body.startswith(b"MPF\0")
    if frame is None or frame.width == 0 or frame.height == 0:
        raise ImageError("the JPEG declares no size before its pixels")
    usual = usual and frame.usual and frame.tables <= quantisation and _is_whole_scan(body, frame, huffman)
    return _Opening(frame.width, frame.height, frame.blocks, usual, multi_picture)


_read_opening_cached = lru_cache(maxsize=1_024)(_read_opening)


class _Frame:
    """The size and the colour components of an image."""

    def __init__(self, marker: int, body: bytes) -> None:
        precision: int
        count: int
        self.height: int
        self.width: int
        precision, self.height, self.width, count = _FRAME.unpack_from(body)
        components = [body[at : at + 3] for at in range(_FRAME.size, len(body), 3)]
        sampling = [component[1:2] for component in components]
        self.ids = [component[0] for component in components]
        self.tables = {component[2] for component in components if len(component) == 3}
        in_colour = count == 3
        self.usual = (
            marker in _HUFFMAN_SEQUENTIAL
            and precision == 8
            and max(self.width, self.height) <= _LONGEST_SIDE
            and len(body) == _FRAME.size + 3 * count
            and len(set(self.ids)) == count
            and (
                sampling == [b"\x11"]
                or (in_colour and sampling[0][0] in _LUMA_SAMPLING and sampling[1:] == [b"\x11", b"\x11"])
            )
        )
        self.blocks = self._count_blocks(sampling[0][0], in_colour) if self.usual else 0

    def _count_blocks(self, luma: int, in_colour: bool) -> int:
        across, down = (luma >> 4, luma & 15) if in_colour else (1, 1)
        columns, rows = -(-self.width // (8 * across)), -(-self.height // (8 * down))
        return columns * rows * (across * down + 2 if in_colour else 1)


def _is_whole_scan(body: bytes, frame: _Frame, huffman: set[int]) -> bool:
    """Whether a scan header takes every component, whole, with tables that are there."""
    count = len(frame.ids)
    return (
        len(body) == 4 + 2 * count
        and body[0] == count
        and list(body[1 : 1 + 2 * count : 2]) == frame.ids
        and body[-3:] == b"\x00\x3f\x00"
        and all(choice >> 4 in huffman and 0x10 | choice & 15 in huffman for choice in body[2 : 2 + 2 * count : 2])
    )


def _define(known: set[int], tables: frozenset[int] | None) -> bool:
    known |= tables or set()
    return tables is not None


def _quantisation_tables(body: bytes) -> frozenset[int] | None:
    """The tables that a segment defines; None if libjpeg might refuse it."""
    tables, position = set(), 0
    while position < len(body):
        precision, table = body[position] >> 4, body[position] & 15
        if precision > 1 or table > 3:
            return None
        tables.add(table)
        position += 1 + (128 if precision else 64)
    return frozenset(tables) if position == len(body) else None


@lru_cache(maxsize=512)  # most files have the tables of the standard's annex
def _huffman_tables(body: bytes) -> frozenset[int] | None:
    """The tables that a segment defines, 0x10 and more for those of AC; None if libjpeg might refuse it."""
    tables, position = set(), 0
    while position < len(body):
        kind, counts = body[position], body[position + 1 : position + 17]
        symbols = body[position + 17 : position + 17 + sum(counts)]
        if (
            kind not in _HUFFMAN_KINDS
            or len(counts) < 16
            or not len(symbols) == sum(counts) <= 256
            or not _is_prefix_code(counts)
            or (kind < 0x10 and max(symbols, default=0) > 15)
        ):
            return None
        tables.add(kind)
        position += 17 + len(symbols)
    return frozenset(tables)


def _is_prefix_code(counts: bytes) -> bool:
    # As libjpeg builds codes: of each length, the one made of ones alone must stay free.
    code, started = 0, False
    for length, count in enumerate(counts, start=1):
        code += count
        started = started or count > 0
        if started and code >= 1 << length:
            return False
        code <<= 1
    return True
