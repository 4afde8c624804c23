"""Reads the end and the number of frames from the container format of an encoded image.

A file that is shorter or longer than its container says is refused. A shorter file is incomplete. A longer file may be
two files in one (a polyglot), and another program could read the second one.
"""

import struct
from struct import Struct

from rollout.images.errors import ImageError
from rollout.images.formats import BMP, GIF, PNG, WEBP, ImageFormat

_unpack_png_chunk = Struct(">I4s").unpack_from
_unpack_riff_chunk = Struct("<4sI").unpack_from
_unpack_u32be = Struct(">I").unpack_from
_unpack_u32le = Struct("<I").unpack_from
_unpack_i32le = Struct("<i").unpack_from
_unpack_u16le = Struct("<H").unpack_from

# Far more chunks than an encoder writes into a file of a usual size, but few enough to read quickly.
_MAX_CHUNKS = 20_000

# The maximum number of compressed texts in a PNG. Pillow unpacks up to 1 MB of each; programs write only a few.
_MAX_PNG_TEXTS = 32

# Pillow decodes the run lengths of a BMP in Python. This takes a second for each of these sizes.
_MAX_BMP_RUN_PIXELS = 1 << 22
_MAX_BMP_RUN_BYTES = 1 << 21


def count_frames(data: bytes, image_format: ImageFormat) -> int:
    """Read the container to its end, and return the number of frames.

    Raises:
        ImageError: the file is cut short, has no frame, or has bytes other than zeros after its end.
    """
    try:
        end, frames = _WALKERS[image_format](data)
    except (IndexError, struct.error):
        end, frames = len(data) + 1, 0
    name = image_format.pillow_name
    if end > len(data):
        raise ImageError(f"the {name} is cut short: only its first {len(data)} bytes are there")
    if data[end:].strip(b"\0"):
        raise ImageError(f"{len(data) - end} bytes follow the end of the {name}, which could hide a second file")
    if frames == 0:
        raise ImageError(f"the {name} contains no image")
    return frames


def _walk_png(data: bytes) -> tuple[int, int]:
    position, frames, texts = 8, 1, 0
    for _ in range(_MAX_CHUNKS):
        length, chunk_type = _unpack_png_chunk(data, position)
        if chunk_type == b"acTL":
            frames = max(1, _unpack_u32be(data, position + 8)[0])
        texts += chunk_type in (b"zTXt", b"iTXt")
        if texts > _MAX_PNG_TEXTS:
            raise ImageError(f"the PNG has more than {_MAX_PNG_TEXTS} compressed texts; save it again without them")
        position += 12 + length
        if chunk_type == b"IEND":
            return position, frames
    raise _too_many_chunks_error("PNG")


def _walk_webp(data: bytes) -> tuple[int, int]:
    end = 8 + _unpack_u32le(data, 4)[0]
    position, still_frames, animation_frames = 12, 0, 0
    for _ in range(_MAX_CHUNKS):
        if position >= end:
            return max(end, position), animation_frames or min(still_frames, 1)
        chunk_type, length = _unpack_riff_chunk(data, position)
        still_frames += chunk_type in (b"VP8 ", b"VP8L")
        animation_frames += chunk_type == b"ANMF"
        position += 8 + length + (length & 1)
    raise _too_many_chunks_error("WEBP")


def _walk_gif(data: bytes) -> tuple[int, int]:
    position, frames = 13 + _gif_palette_bytes(data[10]), 0
    # Pixels are stored in blocks of at most 255 bytes. Encoders fill all blocks except the last few of each frame.
    blocks_left = _MAX_CHUNKS + len(data) // 64
    while blocks_left > 0:
        block_type = data[position]
        blocks_left -= 1
        if block_type == 0x3B:
            return position + 1, frames
        if block_type == 0x2C:
            position += 11 + _gif_palette_bytes(data[position + 9])
            frames += 1
        elif block_type == 0x21:
            position += 2
        else:
            raise ImageError(f"the GIF has an unknown block at byte {position}")
        while blocks_left > 0 and (length := data[position]):
            position += 1 + length
            blocks_left -= 1
        position += 1
    raise _too_many_chunks_error("GIF")


def _too_many_chunks_error(name: str) -> ImageError:
    return ImageError(f"the {name} has more chunks than any encoder writes; save it again")


def _gif_palette_bytes(flags: int) -> int:
    return 3 * (2 << (flags & 7)) if flags & 0x80 else 0


def _walk_bmp(data: bytes) -> tuple[int, int]:
    declared_bytes, pixels_offset, header_bytes = (
        _unpack_u32le(data, 2)[0],
        _unpack_u32le(data, 10)[0],
        _unpack_u32le(data, 14)[0],
    )
    if header_bytes == 12:
        width, height, bits_per_pixel, compression = (
            _unpack_u16le(data, 18)[0],
            _unpack_u16le(data, 20)[0],
            _unpack_u16le(data, 24)[0],
            0,
        )
    else:
        width, height = _unpack_i32le(data, 18)[0], abs(_unpack_i32le(data, 22)[0])
        bits_per_pixel, compression = _unpack_u16le(data, 28)[0], _unpack_u32le(data, 30)[0]
    if compression in (1, 2):  # run-length encoded: only the file header says how long the data is
        if width * height > _MAX_BMP_RUN_PIXELS or len(data) > _MAX_BMP_RUN_BYTES:
            raise ImageError(
                f"the BMP is run-length encoded, with {width}×{height} pixels in {len(data)} bytes, and would take too"
                " long to decode; save it as PNG"
            )
        return max(declared_bytes, pixels_offset), 1
    end = pixels_offset + (width * bits_per_pixel + 31) // 32 * 4 * height
    if header_bytes >= 124 and _unpack_u32le(data, 126)[0]:  # a colour profile follows the pixels
        end = max(end, 14 + _unpack_u32le(data, 126)[0] + _unpack_u32le(data, 130)[0])
    return end, 1


_WALKERS = {PNG: _walk_png, WEBP: _walk_webp, GIF: _walk_gif, BMP: _walk_bmp}
