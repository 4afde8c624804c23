"""Prepares images that are built from pieces: scans, frames, chunks and sub-blocks, with counts around the limits.

python tests/fuzz/fuzz_image_structure.py --count 20000 --seed 0
"""

import base64
import functools
import io
import random
import struct
import sys
import zlib
from collections.abc import Callable, Sequence

from PIL import Image

from tests.fuzz.image_attempt import fuzz_images

# Counts around the limits of rollout.images.jpeg and container_format.
COUNTS = (0, 0, 1, 1, 2, 3, 5, 16, 17, 31, 32, 33)
MANY = (64, 300, 9_999, 10_001, 20_001)
SIDES = (1, 2, 7, 8, 9, 16, 33)


def amount(chance: random.Random) -> int:
    """Return a number of pieces: mostly few, sometimes very many."""
    return chance.choice(COUNTS) if chance.random() < 0.99 else chance.choice(MANY)


@functools.cache
def encoded(format_name: str, mode: str, width: int, height: int, options: tuple[tuple[str, object], ...]) -> bytes:
    pixels = random.Random(f"{width}x{height}").randbytes(3 * width * height)
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), pixels).convert(mode).save(file, format_name, **dict(options))
    return file.getvalue()


def exif(chance: random.Random) -> bytes:
    """Return EXIF with an orientation, in either byte order; entries may be wrong or claim too many values."""
    order = chance.choice("<>")
    entries = [struct.pack(f"{order}HHIHH", 0x0112, 3, 1, chance.randrange(10), 0)]
    for _ in range(chance.choice((0, 0, 1, 5, 300))):
        kind, count = chance.randrange(14), chance.choice((0, 1, 4, 100, 2**16, 2**32 - 1))
        tag = chance.choice((0x0112, 0x8769, 0x8825, 0xA005, chance.randrange(1 << 16)))
        entries.append(struct.pack(f"{order}HHII", tag, kind, count, chance.choice((0, 8, 26, 2**31, 2**32 - 1))))
    chance.shuffle(entries)
    claimed = len(entries) if chance.random() < 0.9 else chance.randrange(1 << 16)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, claimed)
    return head + b"".join(entries) + bytes(chance.choice((0, 4, 100)))


def xmp(chance: random.Random) -> bytes:
    value = chance.choice((b"1", b"6", b"8", b"9", b"66", b""))
    return chance.choice((b'<a tiff:Orientation="%b"/>', b"<tiff:Orientation>%b</tiff:Orientation>")) % value


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body[:65_533]


def jpeg(chance: random.Random) -> bytes:
    mode = chance.choice(("L", "RGB", "RGB", "CMYK"))
    options = (("progressive", chance.random() < 0.6), ("restart_marker_blocks", chance.choice((0, 0, 1))))
    data = encoded("JPEG", mode, chance.choice(SIDES), chance.choice(SIDES), options)
    scans = data[:-2].split(b"\xff\xda")[1:]
    head, segments = data[: data.index(b"\xff\xda")], []
    # Repeat the last scan; only some decoders read other scans after it.
    scans += scans[-1:] * min(amount(chance), 10_001)
    if chance.random() < 0.2:
        scans.insert(chance.randrange(len(scans) + 1), chance.choice((*scans[:5], b"\0\x02")))
    for _ in range(chance.choice((0, 0, 0, 1, 2, 5))):
        segments.append(
            chance.choice(
                (
                    jpeg_segment(0xE1, b"Exif\0\0" + exif(chance)),
                    jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(chance)),
                    jpeg_segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes((chance.randrange(4),))),
                    jpeg_segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
                    jpeg_segment(0xE2, b"ICC_PROFILE\0\1" + chance.randbytes(9)),
                    jpeg_segment(0xED, b"Photoshop 3.0\x008BIM" + chance.randbytes(40)),
                    jpeg_segment(0xDD, struct.pack(">H", chance.randrange(3))),
                    jpeg_segment(0xFE, b"x" * chance.choice((0, 1, 4_525))),
                    b"\xff" * chance.randrange(3),
                    head[2:],
                )
            )
        )
    if chance.random() < 0.02:
        segments += [jpeg_segment(0xFE, b"")] * chance.choice(MANY)
    whole = head[:2] + b"".join(segments) + head[2:] + b"".join(b"\xff\xda" + scan for scan in scans) + b"\xff\xd9"
    return whole if chance.random() < 0.7 else multi_picture(chance, whole)


def multi_picture(chance: random.Random, first: bytes) -> bytes:
    """Return several JPEGs in a row, with an index that may be wrong."""
    others = [encoded("JPEG", "RGB", chance.choice(SIDES), 8, ()) for _ in range(chance.choice((0, 1, 2, 63, 64, 65)))]
    count = chance.choice((len(others) + 1, 1, 0, 2, 2**32 - 1))
    entries = b"".join(struct.pack("<IIIHH", 0x030000, len(one), 0, 0, 0) for one in (first, *others[:100]))
    index = b"MPF\0II*\0" + struct.pack("<IH", 8, 3)
    index += struct.pack("<HHI4s", 0xB000, 7, 4, b"0100") + struct.pack("<HHII", 0xB001, 4, 1, count)
    index += struct.pack("<HHII", 0xB002, 7, len(entries), chance.choice((50, 8, 2**31))) + bytes(4) + entries
    return first[:2] + jpeg_segment(0xE2, index) + first[2:] + b"".join(others)


# Where each pass over an interlaced PNG begins, and its steps.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(chance: random.Random) -> bytes:
    colour, depth = chance.choice(((0, 1), (0, 8), (0, 16), (2, 8), (2, 16), (3, 4), (3, 8), (4, 8), (6, 8), (6, 16)))
    width, height, interlaced = chance.choice(SIDES), chance.choice(SIDES), chance.choice((0, 0, 1))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [((width - x + dx - 1) // dx, (height - y + dy - 1) // dy) for x, y, dx, dy in ADAM7]
    if not interlaced:
        passes = [(width, height)]
    filters = (0, 1, 2, 3, 4) if chance.random() < 0.97 else (0, 5, 255)
    rows = b"".join(
        bytes((chance.choice(filters),)) + chance.randbytes((columns * channels * depth + 7) // 8)
        for columns, lines in passes
        for _ in range(lines if columns else 0)
    )
    rows += bytes(chance.choice((0, 0, 0, 1, 100_000)))
    packed = zlib.compress(rows, 1)
    cuts = sorted(chance.randrange(len(packed) + 1) for _ in range(amount(chance)))
    pieces = [packed[a:b] for a, b in zip([0, *cuts], [*cuts, len(packed)], strict=True)]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    before: list[bytes] = [png_chunk(b"PLTE", chance.randbytes(48))] if colour == 3 else []
    after: list[bytes] = []
    for chunks in (before, after):
        for _ in range(chance.choice((0, 0, 1, 2))):
            chunks.append(png_metadata(chance, width, height))
    if chance.random() < 0.05:
        before += [png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(chance.choice((10, 100_000)))))] * amount(chance)
    if chance.random() < 0.2:
        before.insert(0, png_chunk(b"acTL", struct.pack(">II", chance.choice((0, 1, 2, 2**31)), 0)))
    body = [*before, *(png_chunk(b"IDAT", piece) for piece in pieces), *after]
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(body) + png_chunk(b"IEND", b"")


def png_metadata(chance: random.Random, width: int, height: int) -> bytes:
    frame = (0, width, height, 0, 0, 1, 10, chance.randrange(3), chance.randrange(2))
    if chance.random() < 0.3:
        frame = (0, width + chance.randrange(2), height, chance.randrange(2), 0, 1, 10, chance.randrange(4), 0)
    hexed = exif(chance).hex().encode()
    profile = b"\nexif\n%8d\n%b\n" % (len(hexed), hexed)
    return chance.choice(
        (
            png_chunk(b"eXIf", exif(chance)),
            png_chunk(b"tRNS", bytes(chance.choice((1, 2, 6, 16)))),
            png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", *frame)),
            png_chunk(b"fdAT", bytes(4) + zlib.compress(bytes(20))),
            png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(chance)),
            png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
            png_chunk(b"tEXt", b"k\0" + b"x" * 2_000 + b"PCD_" * 30),
            png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(100))),
            png_chunk(b"gAMA", struct.pack(">I", 45_455)),
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", width + 1, height, 8, 2, 0, 0, 0)),
        )
    )


def gif_blocks(chance: random.Random, data: bytes) -> bytes:
    """Return the data in sub-blocks, which may be tiny."""
    size = chance.choice((255, 255, 255, 100, 1))
    return (
        b"".join(bytes((len(data[at : at + size]),)) + data[at : at + size] for at in range(0, len(data), size)) + b"\0"
    )


def gif(chance: random.Random) -> bytes:
    width, height = chance.choice(SIDES), chance.choice(SIDES)
    pieces = [
        b"GIF89a",
        struct.pack("<HHBBB", width, height, 0x91, chance.choice((0, 3, 255)), 0),
        chance.randbytes(12),
    ]
    for number in range(min(max(1, amount(chance)), 300)):
        if chance.random() < 0.5:
            flags = chance.randrange(8) << 2 | chance.randrange(2)
            pieces.append(b"\x21\xf9\x04" + struct.pack("<BHB", flags, 1, chance.choice((0, 3, 200))) + b"\0")
        if chance.random() < 0.2:
            kind = chance.choice((b"\x21\xfe", b"\x21\xff\x0bNETSCAPE2.0", b"\x21\xff\x0bXMP DataXMP", b"\x21\x01"))
            pieces.append(kind + gif_blocks(chance, xmp(chance)))
        part = chance.random() < 0.5
        box = (
            (chance.randrange(width + 1), chance.randrange(height + 1), chance.choice(SIDES), chance.choice(SIDES))
            if part
            else (0, 0, width, height)
        )
        palette = chance.choice((0, 0, 0x80, 0x81))
        interlaced = chance.choice((0, 0x40))
        pieces.append(b"\x2c" + struct.pack("<HHHHB", *box, palette | interlaced))
        pieces.append(bytes(3 * (2 << (palette & 7)) if palette else 0))
        pieces.append(b"\x02" + gif_blocks(chance, gif_codes(box[2] * box[3])))
        if number > 40:
            break
    if chance.random() < 0.02:
        pieces.append(b"\x21\xfe" + b"\1x" * chance.choice(MANY) + b"\0")
    return b"".join(pieces) + b"\x3b"


@functools.cache
def gif_codes(pixels: int) -> bytes:
    """Return LZW data with a clear code before each pixel, which is valid but larger than the pixels."""
    bits, length = 0, 0
    for code in [code for _ in range(pixels) for code in (4, 1)] + [5]:
        bits |= code << length
        length += 3
    return bits.to_bytes((length + 7) // 8, "little")


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)


def webp(chance: random.Random) -> bytes:
    width, height = chance.choice(SIDES), chance.choice(SIDES)
    still = encoded("WEBP", chance.choice(("RGB", "RGBA")), width, height, (("lossless", chance.random() < 0.5),))
    picture = still[12:] if still[12:16] != b"VP8X" else still[30:]
    canvas = (width, height) if chance.random() < 0.9 else (chance.choice(SIDES), chance.choice((*SIDES, 1 << 24)))
    chunks = []
    animated = chance.random() < 0.5
    if animated:
        chunks.append(riff_chunk(b"ANIM", chance.randbytes(4) + b"\0\0"))
        for _ in range(min(max(1, amount(chance)), 300)):
            at = (0, 0) if chance.random() < 0.95 else (chance.randrange(4), chance.randrange(4))
            box = b"".join(struct.pack("<I", value)[:3] for value in (*at, width - 1, height - 1, 100))
            chunks.append(riff_chunk(b"ANMF", box + bytes((chance.randrange(4),)) + picture))
    else:
        chunks.append(picture)
    flags = (2 if animated else 0) | chance.choice((0, 0x10)) | chance.choice((0, 8, 4, 12))
    if flags & 8:
        chunks.append(riff_chunk(b"EXIF", chance.choice((b"", b"Exif\0\0")) + exif(chance)))
    if flags & 4:
        chunks.append(riff_chunk(b"XMP ", xmp(chance)))
    if chance.random() < 0.1:
        chunks += [riff_chunk(b"junk", b"")] * amount(chance)
    if chance.random() < 0.1:
        chance.shuffle(chunks)
    size = b"".join(struct.pack("<I", (side - 1) & 0xFFFFFF)[:3] for side in canvas)
    body = riff_chunk(b"VP8X", bytes((flags, 0, 0, 0)) + size) + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def bmp(chance: random.Random) -> bytes:
    width, height = chance.choice(SIDES), chance.choice(SIDES)
    compression = chance.choice((0, 0, 1, 1, 2, 3))
    depth = {1: 8, 2: 4, 3: 32}.get(compression) or chance.choice((1, 4, 8, 16, 24, 32))
    colours = 1 << depth if depth <= 8 else 0
    if compression in (1, 2):
        codes = [bytes((chance.randrange(1, 256), chance.randrange(256))) for _ in range(width * height)]
        codes += [chance.choice((b"\0\0", b"\0\2\0\1", b"\0\3abc\0", b"\0\2\xff\xff")) for _ in range(amount(chance))]
        chance.shuffle(codes)
        pixels = b"".join(codes) + b"\0\1"
    else:
        pixels = chance.randbytes((width * depth + 31) // 32 * 4 * height)
    masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF) if compression == 3 else b""
    signed_height = height if compression in (1, 2) or chance.random() < 0.7 else -height
    header = struct.pack("<IiiHHIIiiII", 40, width, signed_height, 1, depth, compression, len(pixels), 0, 0, colours, 0)
    header += masks + chance.randbytes(4 * colours)
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + pixels


MAKERS: Sequence[Callable[[random.Random], bytes]] = (jpeg, jpeg, png, png, gif, webp, webp, bmp)


def make(chance: random.Random) -> str:
    data = chance.choice(MAKERS)(chance)
    if chance.random() < 0.1:
        at = chance.randrange(len(data))
        data = data[:at] + chance.randbytes(1) + data[at + 1 :]
    return "data:image/png;base64," + base64.b64encode(data).decode()


if __name__ == "__main__":
    sys.exit(fuzz_images(__doc__ or "", make))
