"""What a JPEG's markers tell without decoding a pixel.

A baseline JPEG whose tables and single scan obey every rule on which libjpeg gives up can always be decoded: what is
wrong in the compressed data libjpeg conceals with a warning. For such a file, nearly every one there is, the header is
proof enough. Whatever is in any way unusual (progressive, CMYK, EXIF, several scans or images) is left to the decoder.
"""

import re
import struct
from dataclasses import dataclass
from struct import Struct

from .errors import ImageError

_U16 = Struct(">H").unpack_from
_FRAME = Struct(">BHHB").unpack_from

# Inside a scan, 0xFF is followed by 0x00 (a literal), by a restart marker, or by the marker that ends the scan.
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")

_DHT, _SOI, _EOI, _SOS, _DQT, _DRI = 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_HUFFMAN_SEQUENTIAL = {0xC0, 0xC1}
_COMMENT, _JFIF, _ADOBE = 0xFE, 0xE0, 0xEE
# Luma sampling factors for which a 3-component frame is common and valid; chroma is then 1×1.
_LUMA_SAMPLING = {0x11, 0x21, 0x12, 0x22, 0x41}
_LONGEST_SIDE = 65_500  # libjpeg's own limit


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The stored size (before orientation), and whether the markers alone prove that the file decodes."""

    width: int
    height: int
    proven: bool


def read_jpeg(data: bytes) -> JpegHeader:
    """Walk every marker of the file.

    Raises:
        ImageError: the file is cut short, has no frame, or bytes follow its end.
    """
    walk = _Walk(data)
    try:
        end = walk.image(0)
        # A multi-picture file is a row of complete JPEGs; nothing else may follow the first.
        while walk.multi_picture and data[end : end + 2] == b"\xff\xd8":
            end = _Walk(data).image(end)
    except (IndexError, struct.error):
        raise ImageError("the JPEG is cut short") from None
    if data[end:].strip(b"\0"):
        raise ImageError(f"{len(data) - end} bytes follow the end of the JPEG, which could hide a second file")
    if walk.width == 0 or walk.height == 0:
        raise ImageError(f"the JPEG has a size of {walk.width}×{walk.height}")
    return JpegHeader(walk.width, walk.height, walk.proves_itself())


class _Walk:
    """One pass over the markers of one image, collecting what decides whether they prove it decodable."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.width = self.height = 0
        self.multi_picture = False
        self._usual = True
        self._components: dict[int, tuple[int, int]] = {}
        self._quantisation: set[int] = set()
        self._huffman: set[int] = set()
        self._scans = 0
        self._scan_bytes = 0

    def image(self, start: int) -> int:
        """Walk the image that begins at `start`; the offset just after its end marker."""
        data, position = self._data, start + 2
        while True:
            if data[position] != 0xFF:
                raise ImageError(f"the JPEG has no marker at byte {position}, where one must be")
            marker = data[position + 1]
            if marker == 0xFF:
                self._usual = False
                position += 1
                continue
            position += 2
            if marker == _EOI:
                return position
            if marker == _SOI or 0xD0 <= marker <= 0xD7 or marker in (0x00, 0x01):
                raise ImageError(f"the JPEG has a misplaced marker at byte {position - 2}")
            length: int = _U16(data, position)[0]
            end = position + length
            if length < 2 or end > len(data):
                raise ImageError("the JPEG is cut short")
            body = data[position + 2 : end]
            position = end
            if marker == _SOS:
                self._scan_header(body)
                found = _SCAN_END.search(data, end)
                if found is None:
                    raise ImageError("the JPEG is cut short: its end marker is missing")
                position = found.start()
                self._scans += 1
                self._scan_bytes = position - end
            else:
                self._segment(marker, body)

    def proves_itself(self) -> bool:
        """Whether no rule is left on which libjpeg could give up.

        Raises:
            ImageError: the scan is too short for the size, whatever it holds.
        """
        if not (self._usual and self._scans == 1 and self._components):
            return False
        sampling = [sampling for sampling, _ in self._components.values()]
        across, down = (sampling[0] >> 4, sampling[0] & 15) if len(sampling) == 3 else (1, 1)
        cells = -(-self.width // (8 * across)) * -(-self.height // (8 * down))
        blocks = cells * (across * down + 2 if len(sampling) == 3 else 1)
        # Every block takes at least one code for its mean and one for its end, each of a bit or more.
        if self._scan_bytes * 8 < blocks * 2:
            raise ImageError(
                f"the JPEG is cut short: {self._scan_bytes} bytes cannot hold {self.width}×{self.height} pixels"
            )
        return all(table in self._quantisation for _, table in self._components.values())

    def _segment(self, marker: int, body: bytes) -> None:
        if marker in _FRAMES:
            self._frame(marker, body)
        elif self._scans:
            self._usual = False
        elif marker == _DHT:
            self._huffman_tables(body)
        elif marker == _DQT:
            self._quantisation_tables(body)
        elif marker == _DRI:
            self._usual &= len(body) == 2
        elif marker == _JFIF:
            self._usual &= body.startswith(b"JFIF\0") and len(body) == 14
        elif marker == _ADOBE:
            self._usual &= body.startswith(b"Adobe") and len(body) == 12
        elif marker != _COMMENT:
            self._usual = False
            self.multi_picture |= marker == 0xE2 and body.startswith(b"MPF\0")

    def _frame(self, marker: int, body: bytes) -> None:
        if self.width:
            raise ImageError("the JPEG declares its size twice")
        precision, self.height, self.width, count = _FRAME(body)
        triples = [body[at : at + 3] for at in range(6, len(body), 3)]
        self._components = {triple[0]: (triple[1], triple[2]) for triple in triples if len(triple) == 3}
        sampling = [triple[1] for triple in triples]
        self._usual &= (
            marker in _HUFFMAN_SEQUENTIAL
            and precision == 8
            and len(body) == 6 + 3 * count
            and len(self._components) == count
            and max(self.width, self.height) <= _LONGEST_SIDE
            and (sampling == [0x11] or (count == 3 and sampling[0] in _LUMA_SAMPLING and sampling[1:] == [0x11, 0x11]))
        )

    def _scan_header(self, body: bytes) -> None:
        count = body[0]
        choices = [(body[1 + 2 * at], body[2 + 2 * at]) for at in range(count)]
        self._usual &= (
            [component for component, _ in choices] == list(self._components)
            and body[1 + 2 * count :] == b"\x00\x3f\x00"
            and all(tables >> 4 in self._huffman and 0x10 | tables & 15 in self._huffman for _, tables in choices)
        )

    def _quantisation_tables(self, body: bytes) -> None:
        position = 0
        while position < len(body):
            precision, table = body[position] >> 4, body[position] & 15
            position += 1 + (128 if precision else 64)
            self._usual &= precision <= 1 and table <= 3
            self._quantisation.add(table)
        self._usual &= position == len(body)

    def _huffman_tables(self, body: bytes) -> None:
        position = 0
        while position < len(body):
            kind = body[position]
            counts = body[position + 1 : position + 17]
            symbols = body[position + 17 : position + 17 + sum(counts)]
            position += 17 + len(symbols)
            self._usual &= (
                kind in (0x00, 0x01, 0x02, 0x03, 0x10, 0x11, 0x12, 0x13)
                and len(counts) == 16
                and len(symbols) == sum(counts) <= 256
                and _is_prefix_code(counts)
                and (kind >= 0x10 or max(symbols, default=0) <= 15)
            )
            self._huffman.add(kind)


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
