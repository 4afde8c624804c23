"""Files that take far longer to decode than their size suggests, and files that fit two formats."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rollout.images import ImageError, ImagePolicy, inspect_image, prepare_images


def with_scans(data: bytes, count: int) -> bytes:
    """Return a JPEG with `count` more copies of its last scan."""
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


@pytest.mark.parametrize("progressive", [False, True])
def test_many_scans_of_many_pixels_are_refused(progressive: bool) -> None:
    file = io.BytesIO()
    Image.new("RGB", (800, 600), "teal").save(file, "JPEG", progressive=progressive)
    data = file.getvalue()
    assert inspect_image(data).width == 800
    with pytest.raises(ImageError, match=r"10\d\d scans of 800×600 pixels, .* save the image again"):
        inspect_image(with_scans(data, 1_000))


def test_scans_that_encoders_write_are_accepted_at_any_size_and_many_scans_of_few_pixels_too(encode: Any) -> None:
    data = bytearray(encode("JPEG", progressive=True, width=64, height=64))
    assert inspect_image(with_scans(bytes(data), 200)).width == 64
    frame = data.index(b"\xff\xc2") + 5
    data[frame : frame + 4] = struct.pack(">HH", 5_700, 5_800)
    assert bytes(data).count(b"\xff\xda") == 10
    with pytest.raises(ImageError, match="bomb"):  # and not for its scans
        inspect_image(bytes(data))


def run_length_bitmap(width: int, height: int, codes: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 256, 0) + b"\0\1\2\0" * 256
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + len(codes), 0, 0, start) + header + codes


@pytest.mark.parametrize(
    ("width", "height", "codes"), [(3_000, 3_000, b"\1\5\0\0" * 3_000), (10, 10, b"\0\2\0\0" * 600_000)]
)
def test_only_small_run_length_bitmaps_are_accepted(width: int, height: int, codes: bytes) -> None:
    assert inspect_image(run_length_bitmap(100, 100, b"\1\5\0\0" * 100 + b"\0\1")).width == 100
    with pytest.raises(ImageError, match=r"run-length encoded.* save it as PNG"):
        inspect_image(run_length_bitmap(width, height, codes + b"\0\1"))


def png_with(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    written = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return data[:33] + written + data[33:]


def test_grey_of_16_bits_is_refused_because_engines_cut_it_off(encode: Any, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"mode I;16.* above 255 as white"):
        inspect_image(encode("PNG", mode="I;16"))
    for mode in ("I;16", "I", "F"):
        part = {"type": "image", "image": Image.new(mode, (2, 2))}
        with pytest.raises(ImageError, match=rf"mode {mode}.* Scale the values to 0 to 255"):
            prepare_images([{"role": "user", "content": [part]}], ImagePolicy("offload", tmp_path))


def test_a_png_with_many_compressed_texts_is_refused(encode: Any) -> None:
    text = (b"zTXt", b"key\0\0" + zlib.compress(b"x" * 1_000))
    assert inspect_image(png_with(encode(), *[text] * 32)).width == 12
    with pytest.raises(ImageError, match="more than 32 compressed texts"):
        inspect_image(png_with(encode(), *[text] * 33))


def test_a_file_that_fits_two_formats_is_refused(encode: Any) -> None:
    """The engine tries Photo CD before PNG, and FLI before JPEG."""
    text = b"k\0" + b"x" * (2048 - 33 - 8 - 2) + b"PCD_" + b"x" * 2_000
    with pytest.raises(ImageError, match="PNG is also a PCD image"):
        inspect_image(png_with(encode(), (b"tEXt", text)))
    jpeg = encode("JPEG")
    segment = bytearray(0x11AF)  # in the other byte order: 0xAF11, the number of FLI
    segment[0:8] = struct.pack(">HHHH", 0x11AF, 0x0100, 0x4001, 0xC800)  # one frame of 320×200
    with pytest.raises(ImageError, match="JPEG is also a FLI image"):
        inspect_image(jpeg[:2] + b"\xff\xe5" + bytes(segment) + jpeg[2:])
