"""Where an encoded image ends and how many frames it has, read from its container and nothing else.

A file that stops before its container says, or goes on after it, is refused: the first is cut short, the second may be
two files in one (a polyglot), of which another program would read the other.
"""

import struct
from struct import Struct

from rollout.images.errors import ImageError
from rollout.images.formats import BMP, GIF, PNG, WEBP, ImageFormat

_PNG_CHUNK = Struct(">I4s").unpack_from
_RIFF_CHUNK = Struct("<4sI").unpack_from
_U32BE = Struct(">I").unpack_from
_U32LE = Struct("<I").unpack_from
_I32LE = Struct("<i").unpack_from
_U16LE = Struct("<H").unpack_from

# Far more than any encoder writes into a file of a sensible size, and few enough to walk in no time.
_MOST_CHUNKS = 20_000


def count_frames(data: bytes, found: ImageFormat) -> int:
    """Walk the container to its end; the number of frames in it.

    Raises:
        ImageError: the file is cut short, or bytes other than zeros follow its end.
    """
    try:
        end, frames = _WALKS[found](data)
    except (IndexError, struct.error):
        end, frames = len(data) + 1, 0
    name = found.pillow_name
    if end > len(data):
        raise ImageError(f"the {name} is cut short: it is longer than the {len(data)} bytes that are there")
    if data[end:].strip(b"\0"):
        raise ImageError(f"{len(data) - end} bytes follow the end of the {name}, which could hide a second file")
    if frames == 0:
        raise ImageError(f"the {name} has no image in it")
    return frames


def _png(data: bytes) -> tuple[int, int]:
    position, frames = 8, 1
    for _ in range(_MOST_CHUNKS):
        length, kind = _PNG_CHUNK(data, position)
        if kind == b"acTL":
            frames = max(1, _U32BE(data, position + 8)[0])
        position += 12 + length
        if kind == b"IEND":
            return position, frames
    raise _crumbled("PNG")


def _webp(data: bytes) -> tuple[int, int]:
    end = 8 + _U32LE(data, 4)[0]
    position, still, animated = 12, 0, 0
    for _ in range(_MOST_CHUNKS):
        if position >= end:
            return max(end, position), animated or min(still, 1)
        kind, length = _RIFF_CHUNK(data, position)
        still += kind in (b"VP8 ", b"VP8L")
        animated += kind == b"ANMF"
        position += 8 + length + (length & 1)
    raise _crumbled("WEBP")


def _gif(data: bytes) -> tuple[int, int]:
    position, frames = 13 + _gif_palette(data[10]), 0
    # Pixels come in pieces of at most 255 bytes; encoders fill all but the last few of each frame.
    pieces_left = _MOST_CHUNKS + len(data) // 64
    while pieces_left > 0:
        kind = data[position]
        pieces_left -= 1
        if kind == 0x3B:
            return position + 1, frames
        if kind == 0x2C:
            position += 11 + _gif_palette(data[position + 9])
            frames += 1
        elif kind == 0x21:
            position += 2
        else:
            raise ImageError(f"the GIF has an unknown block at byte {position}")
        while pieces_left > 0 and (length := data[position]):
            position += 1 + length
            pieces_left -= 1
        position += 1
    raise _crumbled("GIF")


def _crumbled(name: str) -> ImageError:
    return ImageError(f"the {name} is cut into more pieces than any encoder makes")


def _gif_palette(flags: int) -> int:
    return 3 * (2 << (flags & 7)) if flags & 0x80 else 0


def _bmp(data: bytes) -> tuple[int, int]:
    declared, pixels, header = _U32LE(data, 2)[0], _U32LE(data, 10)[0], _U32LE(data, 14)[0]
    if header == 12:
        width, height, bits, compression = _U16LE(data, 18)[0], _U16LE(data, 20)[0], _U16LE(data, 24)[0], 0
    else:
        width, height = _I32LE(data, 18)[0], abs(_I32LE(data, 22)[0])
        bits, compression = _U16LE(data, 28)[0], _U32LE(data, 30)[0]
    if compression in (1, 2):  # run-length encoded: only the file header knows how long it is
        return max(declared, pixels), 1
    end = pixels + (width * bits + 31) // 32 * 4 * height
    if header >= 124 and _U32LE(data, 126)[0]:  # a colour profile follows the pixels
        end = max(end, 14 + _U32LE(data, 126)[0] + _U32LE(data, 130)[0])
    return end, 1


_WALKS = {PNG: _png, WEBP: _webp, GIF: _gif, BMP: _bmp}
