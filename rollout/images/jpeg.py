"""Reads the markers of a JPEG, without decoding pixels.

libjpeg refuses a file only for certain errors in its tables and headers. For errors in the compressed data, it only
warns. So a baseline JPEG with one scan and without such errors can always be decoded, and its header proves this.
Nearly every JPEG is like this. Others (progressive, CMYK, EXIF, several scans or images) must be decoded to check them.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rollout.images.errors import ImageError

# Inside a scan, 0xFF is followed by 0x00 (a literal), by a restart marker, or by the marker that ends the scan.
_SCAN_END_PATTERN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_FRAME_STRUCT = struct.Struct(">BHHB")

_DHT, _SOI, _EOI, _SOS, _DQT, _DRI = 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD
_COMMENT, _JFIF, _MULTI_PICTURE, _ADOBE = 0xFE, 0xE0, 0xE2, 0xEE
_FRAME_MARKERS = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_SEQUENTIAL_FRAME_MARKERS = frozenset({0xC0, 0xC1})
_MARKERS_WITHOUT_LENGTH = frozenset({0x00, 0x01, _SOI, *range(0xD0, 0xD8)})

_HUFFMAN_TABLE_IDS = frozenset({0x00, 0x01, 0x02, 0x03, 0x10, 0x11, 0x12, 0x13})
# The luma sampling factors of common and valid 3-component frames, in which the chroma factors are 1×1.
_LUMA_SAMPLING = frozenset({0x11, 0x21, 0x12, 0x22, 0x41})
_MAX_SIDE = 65_500  # libjpeg's own limit
_MAX_PICTURES = 64  # in one file; a phone writes two or three
_MAX_SEGMENTS = 10_000  # in one image; a progressive image with metadata has a few dozen

# A decoder processes all pixels once for each scan, even if the scan has only a few bytes. Encoders write about ten
# scans. More scans are accepted if decoding all of them takes about a second at most.
_USUAL_SCANS = 16
_MAX_SCANNED_PIXELS = 1 << 28

# An encoder writes equal headers for images of the same size, so headers are cached. Long headers contain metadata and
# differ.
_CACHED_HEADER_BYTES = 2_048


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The size of a JPEG, and whether it can surely be decoded.

    Attributes:
        width: the width of the stored image in pixels, before its orientation is applied.
        height: the height of the stored image in pixels.
        proven: whether the markers alone prove that the file can be decoded.
    """

    width: int
    height: int
    proven: bool


@dataclass(frozen=True, slots=True)
class _HeaderFacts:
    """The content of the segments before the first scan.

    Attributes:
        width: the width of the stored image in pixels.
        height: the height of the stored image in pixels.
        block_count: the number of blocks of compressed pixels in the scan; 0 if the header is not standard.
        is_standard: whether libjpeg surely accepts everything that the segments define.
        multi_picture: whether the file may consist of several complete JPEGs.
    """

    width: int
    height: int
    block_count: int
    is_standard: bool
    multi_picture: bool


def read_jpeg(data: bytes) -> JpegHeader:
    """Read the header of a JPEG and check all its markers.

    Raises:
        ImageError: the file is incomplete or has no size, or there are bytes after its end.
    """
    try:
        scan_start = _find_first_scan(data, 0)
        read_header = _read_header_cached if scan_start <= _CACHED_HEADER_BYTES else _read_header
        header = read_header(data[:scan_start])
        image_end, scan_count, scan_bytes = _find_image_end(data, scan_start)
        # A multi-picture file consists of several complete JPEGs. Nothing else may follow the first one.
        for _ in range(_MAX_PICTURES if header.multi_picture else 0):
            if data[image_end : image_end + 2] != b"\xff\xd8":
                break
            image_end, *_ = _find_image_end(data, _find_first_scan(data, image_end))
    except (IndexError, struct.error):
        raise ImageError("the JPEG is cut short") from None
    if data[image_end:].strip(b"\0"):
        raise ImageError(f"{len(data) - image_end} bytes follow the end of the JPEG, which could hide a second file")
    _check_scans(header, scan_count)
    proven = header.is_standard and scan_bytes is not None
    # Each block has at least two codes, one for its mean and one for its end. A code has at least one bit.
    if proven and scan_bytes is not None and scan_bytes * 8 < header.block_count * 2:
        raise ImageError(f"the JPEG is cut short: {scan_bytes} bytes cannot hold {header.width}×{header.height} pixels")
    return JpegHeader(header.width, header.height, proven)


def _find_first_scan(data: bytes, image_start: int) -> int:
    """Return the offset of the first compressed byte of the image that begins at `image_start`."""
    for marker, _, end in _iterate_segments(data, image_start + 2):
        if marker == _SOS:
            return end
        if marker == _EOI:
            break
    raise ImageError("the JPEG ends before its pixels")


def _find_image_end(data: bytes, scan_start: int) -> tuple[int, int, int | None]:
    """Return the offset after the end marker, the number of scans, and the size of a single scan or None."""
    marker_offset, scan_count, segments_left = _find_first_scan_end(data, scan_start), 1, _MAX_SEGMENTS
    if data[marker_offset + 1] == _EOI:
        return marker_offset + 2, 1, marker_offset - scan_start
    while True:
        for marker, _, end in _iterate_segments(data, marker_offset):
            segments_left -= 1
            if segments_left < 0:
                raise _too_many_segments_error()
            if marker == _EOI:
                return end, scan_count, None
            if marker == _SOS:
                marker_offset = _find_scan_end(data, end)
                scan_count += 1
                break


def _check_scans(header: _HeaderFacts, scan_count: int) -> None:
    pixels = header.width * header.height
    if scan_count > _USUAL_SCANS and scan_count * pixels > _MAX_SCANNED_PIXELS:
        raise ImageError(
            f"the JPEG has {scan_count} scans of {header.width}×{header.height} pixels, which take too long to decode;"
            " encoders write about ten scans, so save the image again"
        )


def _find_first_scan_end(data: bytes, position: int) -> int:
    # The first 0xFF that is not a literal is nearly always the end. This search takes 1/3 of the time of the pattern.
    remaining = np.frombuffer(data, np.uint8, offset=position)
    candidates = (remaining[:-1] == 0xFF) & (remaining[1:] != 0x00)
    return _find_scan_end(data, position + (int(candidates.argmax()) if len(candidates) else 0))


def _find_scan_end(data: bytes, position: int) -> int:
    """Return the offset of the marker that ends the scan at `position`."""
    end_marker = _SCAN_END_PATTERN.search(data, position)
    if end_marker is None:
        raise ImageError("the JPEG is cut short: its end marker is missing")
    return end_marker.start()


def _too_many_segments_error() -> ImageError:
    return ImageError("the JPEG has more segments than any encoder writes; save it again")


def _iterate_segments(data: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, the start and the end of each segment from `position` on, until the end marker of the image."""
    for _ in range(_MAX_SEGMENTS):
        if data[position] != 0xFF:
            raise ImageError(f"the JPEG must have a marker at byte {position}, but has none")
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == _EOI:
            yield marker, position + 2, position + 2
            return
        if marker in _MARKERS_WITHOUT_LENGTH:
            raise ImageError(f"the JPEG has a marker in a wrong place, at byte {position}")
        start = position + 4
        position += 2 + (data[position + 2] << 8 | data[position + 3])
        if not start <= position <= len(data):
            raise ImageError("the JPEG is cut short")
        yield marker, start, position
    raise _too_many_segments_error()


def _read_header(header_bytes: bytes) -> _HeaderFacts:
    frame = None
    quantisation_ids: set[int] = set()
    huffman_ids: set[int] = set()
    is_standard, multi_picture = True, False
    for marker, start, end in _iterate_segments(header_bytes, 2):
        body = header_bytes[start:end]
        if marker in _FRAME_MARKERS:
            if frame is not None:
                raise ImageError("the JPEG has two headers with a size")
            frame = _FrameHeader(marker, body)
        elif marker == _DHT:
            is_standard &= _add_tables(huffman_ids, _huffman_table_ids(body))
        elif marker == _DQT:
            is_standard &= _add_tables(quantisation_ids, _quantisation_table_ids(body))
        elif marker == _SOS:
            break
        elif marker == _DRI:
            is_standard &= len(body) == 2
        elif marker == _JFIF:
            is_standard &= body.startswith(b"JFIF\0") and len(body) == 14
        elif marker == _ADOBE:
            is_standard &= body.startswith(b"Adobe") and len(body) == 12
        elif marker != _COMMENT:
            is_standard = False
            multi_picture |= marker == _MULTI_PICTURE and body.startswith(b"MPF\0")
    if frame is None or frame.width == 0 or frame.height == 0:
        raise ImageError("the JPEG has no header with a size before its pixels")
    is_standard = (
        is_standard
        and frame.is_standard
        and frame.quantisation_ids <= quantisation_ids
        and _is_complete_scan(body, frame, huffman_ids)
    )
    return _HeaderFacts(frame.width, frame.height, frame.block_count, is_standard, multi_picture)


_read_header_cached = lru_cache(maxsize=1_024)(_read_header)


class _FrameHeader:
    """The frame header of a JPEG: the size and the colour components of the image."""

    def __init__(self, marker: int, body: bytes) -> None:
        precision: int
        component_count: int
        self.height: int
        self.width: int
        precision, self.height, self.width, component_count = _FRAME_STRUCT.unpack_from(body)
        components = [body[at : at + 3] for at in range(_FRAME_STRUCT.size, len(body), 3)]
        sampling = [component[1:2] for component in components]
        self.component_ids = [component[0] for component in components]
        self.quantisation_ids = {component[2] for component in components if len(component) == 3}
        is_colour = component_count == 3
        self.is_standard = (
            marker in _SEQUENTIAL_FRAME_MARKERS
            and precision == 8
            and max(self.width, self.height) <= _MAX_SIDE
            and len(body) == _FRAME_STRUCT.size + 3 * component_count
            and len(set(self.component_ids)) == component_count
            and (
                sampling == [b"\x11"]
                or (is_colour and sampling[0][0] in _LUMA_SAMPLING and sampling[1:] == [b"\x11", b"\x11"])
            )
        )
        self.block_count = self._count_blocks(sampling[0][0], is_colour) if self.is_standard else 0

    def _count_blocks(self, luma_sampling: int, is_colour: bool) -> int:
        horizontal, vertical = (luma_sampling >> 4, luma_sampling & 15) if is_colour else (1, 1)
        columns, rows = -(-self.width // (8 * horizontal)), -(-self.height // (8 * vertical))
        return columns * rows * (horizontal * vertical + 2 if is_colour else 1)


def _is_complete_scan(body: bytes, frame: _FrameHeader, huffman_ids: set[int]) -> bool:
    """Whether a scan contains all components completely, and its Huffman tables are defined."""
    component_count = len(frame.component_ids)
    return (
        len(body) == 4 + 2 * component_count
        and body[0] == component_count
        and list(body[1 : 1 + 2 * component_count : 2]) == frame.component_ids
        and body[-3:] == b"\x00\x3f\x00"
        and all(
            table_ids >> 4 in huffman_ids and 0x10 | table_ids & 15 in huffman_ids
            for table_ids in body[2 : 2 + 2 * component_count : 2]
        )
    )


def _add_tables(defined_ids: set[int], new_ids: frozenset[int] | None) -> bool:
    defined_ids |= new_ids or set()
    return new_ids is not None


def _quantisation_table_ids(body: bytes) -> frozenset[int] | None:
    """Return the ids of the quantisation tables in a segment; None if libjpeg might refuse the segment."""
    table_ids, position = set(), 0
    while position < len(body):
        precision, table_id = body[position] >> 4, body[position] & 15
        if precision > 1 or table_id > 3:
            return None
        table_ids.add(table_id)
        position += 1 + (128 if precision else 64)
    return frozenset(table_ids) if position == len(body) else None


@lru_cache(maxsize=512)  # most files use the example tables of the JPEG standard
def _huffman_table_ids(body: bytes) -> frozenset[int] | None:
    """Return the ids of the Huffman tables in a segment (AC tables from 0x10 on); None if libjpeg might refuse it."""
    table_ids, position = set(), 0
    while position < len(body):
        table_id, counts = body[position], body[position + 1 : position + 17]
        symbols = body[position + 17 : position + 17 + sum(counts)]
        if (
            table_id not in _HUFFMAN_TABLE_IDS
            or len(counts) < 16
            or not len(symbols) == sum(counts) <= 256
            or not _is_prefix_code(counts)
            or (table_id < 0x10 and max(symbols, default=0) > 15)
        ):
            return None
        table_ids.add(table_id)
        position += 17 + len(symbols)
    return frozenset(table_ids)


def _is_prefix_code(counts: bytes) -> bool:
    # libjpeg's rule: for each code length, the code that consists only of ones must not be used.
    code, has_codes = 0, False
    for length, count in enumerate(counts, start=1):
        code += count
        has_codes = has_codes or count > 0
        if has_codes and code >= 1 << length:
            return False
        code <<= 1
    return True
