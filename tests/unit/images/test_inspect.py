"""What is read from a header, which files are refused, and the reasons."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from rollout.config.sections import ImagesConfig
from rollout.images import ImageError, ImageLimits, ImagePolicy, inspect_image
from rollout.images.inspect import confirm_decodable
from rollout.images.policy import WIDEST_LIMITS

FORMATS = [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("GIF", ".gif"), ("BMP", ".bmp")]


@pytest.mark.parametrize(("format_name", "extension"), FORMATS)
def test_type_and_size_come_from_the_bytes(encode: Any, format_name: str, extension: str) -> None:
    info = inspect_image(encode(format_name, width=31, height=7))
    assert (info.format.extension, info.width, info.height, info.frames) == (extension, 31, 7, 1)
    assert not info.has_alpha


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_displayed_image(encode: Any, format_name: str, orientation: int) -> None:
    info = inspect_image(encode(format_name, width=12, height=8, orientation=orientation))
    assert (info.width, info.height) == ((12, 8) if orientation < 5 else (8, 12))


def test_an_orientation_after_the_pixels_of_a_png_counts_after_decoding(encode: Any) -> None:
    data = encode("PNG", orientation=6)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    late_exif = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    confirmed = confirm_decodable(late_exif, inspect_image(late_exif))
    assert (confirmed.width, confirmed.height) == (8, 12)


@pytest.mark.parametrize("format_name", ["PNG", "GIF", "WEBP"])
def test_frames_are_counted(encode: Any, picture: Any, format_name: str) -> None:
    others = [picture(seed=1), picture(seed=2)]
    data = encode(format_name, mode="RGBA", save_all=True, append_images=others)
    assert inspect_image(data).frames == 3


@pytest.mark.parametrize(
    ("format_name", "mode", "options"),
    [
        ("PNG", "RGBA", {}),
        ("PNG", "LA", {}),
        ("PNG", "P", {"transparency": 1}),
        ("GIF", "P", {"transparency": 1}),
        ("WEBP", "RGBA", {}),
    ],
)
def test_transparency_is_found(encode: Any, format_name: str, mode: str, options: dict[str, Any]) -> None:
    assert inspect_image(encode(format_name, mode=mode, **options)).has_alpha


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("L", {}),
        ("RGB", {}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 1}),
        ("RGB", {"optimize": True}),
        ("RGB", {"comment": b"x"}),
        ("RGB", {"restart_marker_blocks": 1}),
        ("RGB", {"quality": 1}),
    ],
)
def test_the_header_of_a_baseline_jpeg_proves_that_it_can_be_decoded(
    encode: Any, mode: str, options: dict[str, Any]
) -> None:
    assert inspect_image(encode("JPEG", mode=mode, width=50, height=30, **options)).proven


@pytest.mark.parametrize(
    ("mode", "options"),
    [("CMYK", {}), ("RGB", {"progressive": True}), ("RGB", {"orientation": 1}), ("RGB", {"icc_profile": b"\0" * 20})],
)
def test_an_unusual_jpeg_must_be_decoded(encode: Any, mode: str, options: dict[str, Any]) -> None:
    data = encode("JPEG", mode=mode, **options)
    info = inspect_image(data)
    assert not info.proven
    assert confirm_decodable(data, info) == info


def test_a_multi_picture_jpeg_counts_as_its_first_picture(encode: Any, picture: Any) -> None:
    data = encode("MPO", save_all=True, append_images=[picture(30, 30).convert("RGB")])
    info = inspect_image(data)
    assert (info.format.extension, info.width, info.height) == (".jpg", 12, 8)
    assert confirm_decodable(data, info) == info


def make_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "hidden")
    return file.getvalue()


@pytest.mark.parametrize("format_name", [name for name, _ in FORMATS])
@pytest.mark.parametrize("hidden", [make_archive(), b"<html><script></script></html>", b"\xff\xd8\xff\xd9"])
def test_a_polyglot_is_refused(encode: Any, format_name: str, hidden: bytes) -> None:
    with pytest.raises(ImageError, match="could hide a second file"):
        inspect_image(encode(format_name) + hidden)


@pytest.mark.parametrize("format_name", [name for name, _ in FORMATS])
def test_zeros_after_the_end_are_padding(encode: Any, format_name: str) -> None:
    assert inspect_image(encode(format_name) + b"\0" * 100).width == 12


@pytest.mark.parametrize("format_name", [name for name, _ in FORMATS])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(encode: Any, format_name: str, keep: float) -> None:
    data = encode(format_name, width=60, height=40)
    with pytest.raises(ImageError):
        inspect_image(data[: int(len(data) * keep)])


def test_a_jpeg_that_is_cut_after_its_header_is_refused_even_with_an_end_marker(encode: Any) -> None:
    data = encode("JPEG", width=300, height=300)
    start = data.index(b"\xff\xda") + 14
    with pytest.raises(ImageError, match="cannot hold 300×300"):
        inspect_image(data[: start + 100].rstrip(b"\xff") + b"\xff\xd9")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", "no bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "SVG"),
        (b"<?xml version='1.0'?><svg></svg>", "SVG"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"II*\0" + b"\0" * 40, "TIFF"),
        (b"\0\0\0\x1cftypavif" + b"\0" * 40, "AVIF"),
        (b"%PDF-1.7", "PDF"),
        (b"MZ\x90\0", "begins with 4d 5a 90 00"),
        (b"BMxxxxxxxxxxxxxxxx", "begins with 42 4d"),
    ],
)
def test_the_error_of_a_file_that_is_not_an_accepted_image_names_its_type(data: bytes, name: str) -> None:
    with pytest.raises(ImageError, match=name):
        inspect_image(data)


def png_of(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_decompression_bombs_are_refused_by_size_and_by_ratio() -> None:
    with pytest.raises(ImageError, match="decompression bomb"):
        inspect_image(png_of(50_000, 50_000, b""))
    with pytest.raises(ImageError, match=r"unpacked from .* bomb"):
        inspect_image(png_of(5_000, 5_000, b"\0" * 100))


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        (ImageLimits(max_bytes=10), "bytes, but images.max_bytes allows 10; make the image sm"),
        (
            ImageLimits(max_pixels=95),
            "12×8, 96 pixels, but images.max_pixels allows 95; make the image sm",
        ),
        (ImageLimits(max_side=11), "max_side 11"),
        (ImageLimits(max_aspect=1.4), "max_aspect 1.4"),
    ],
)
def test_an_image_over_a_limit_is_refused_with_its_name(encode: Any, limits: ImageLimits, complaint: str) -> None:
    for format_name, _ in FORMATS:
        with pytest.raises(ImageError, match=complaint):
            inspect_image(encode(format_name), limits)


def test_an_image_at_its_limits_is_accepted(encode: Any) -> None:
    data = encode("PNG")
    inspect_image(data, ImageLimits(max_bytes=len(data), max_pixels=96, max_side=12, max_aspect=1.5))


@pytest.mark.parametrize("rows", [zlib.compress(b"\0" * 50), b"no zlib", b""])
def test_pixels_that_do_not_decode_are_refused_when_confirming(rows: bytes) -> None:
    data = png_of(20, 20, rows)
    info = inspect_image(data)
    with pytest.raises(ImageError, match="cannot be decoded"):
        confirm_decodable(data, info)


def test_a_progressive_jpeg_with_a_broken_table_is_refused_when_confirming(encode: Any) -> None:
    data = bytearray(encode("JPEG", progressive=True))
    data[data.index(b"\xff\xc4") + 5] = 200
    with pytest.raises(ImageError):
        confirm_decodable(bytes(data), inspect_image(bytes(data)))


def test_bitmaps_with_a_colour_profile_after_the_pixels_are_accepted(encode: Any) -> None:
    plain = encode("BMP")
    profile = b"an icc profile"
    header = (
        struct.pack("<I", 124) + plain[18:54] + b"\0" * 72 + struct.pack("<II", 124 + len(plain) - 54, 14) + b"\0" * 4
    )
    head = b"BM" + struct.pack("<IHHI", 14 + 124 + len(plain) - 54 + len(profile), 0, 0, 14 + 124)
    data = head + header + plain[54:] + profile
    assert Image.open(io.BytesIO(data)).size == (12, 8)
    assert inspect_image(data).width == 12
    with pytest.raises(ImageError, match="second file"):
        inspect_image(data + b"x")


MANY_PIECES: dict[str, Callable[[bytes], bytes]] = {
    "PNG": lambda data: data[:33] + (b"\0\0\0\0teXt" + struct.pack(">I", zlib.crc32(b"teXt"))) * 300_000 + data[33:],
    "GIF": lambda data: data[:-1] + b"\x21\xfe" + b"\x01x" * 2_000_000 + b"\0;",
    "GIF blocks": lambda data: data[:-1] + b"\x21\xfe\0" * 2_000_000 + b";",
    "WEBP": lambda data: b"RIFF" + struct.pack("<I", len(data) + 8_000_000) + data[8:] + b"junk\0\0\0\0" * 1_000_001,
    "JPEG": lambda data: data[:2] + b"\xff\xfe\0\x02" * 1_000_000 + data[2:],
    "JPEG scans": lambda data: data[:-2] + b"\xff\xda\0\x02x" * 1_000_000 + data[-2:],
}


@pytest.mark.parametrize("kind", MANY_PIECES)
def test_a_file_of_a_million_pieces_is_refused_early(encode: Any, kind: str) -> None:
    data = MANY_PIECES[kind](encode(kind.split()[0]))
    with pytest.raises(ImageError, match=r"(chunks|segments) than any encoder writes"):
        inspect_image(data)


def test_a_run_and_a_policy_have_the_same_default_limits(tmp_path: Path) -> None:
    policy, config = ImagePolicy("offload", tmp_path), ImagesConfig()
    assert (policy.max_bytes, policy.max_pixels, policy.memory) == (config.max_bytes, config.max_pixels, config.memory)
    assert config.max_bytes == 20_000_000


def test_a_trainer_reads_every_image_that_a_run_may_accept() -> None:
    for key in ("max_bytes", "max_pixels"):
        ImagesConfig.model_validate({key: getattr(WIDEST_LIMITS, key)})
        with pytest.raises(ValidationError, match=f"{key}\n.*less than or equal"):
            ImagesConfig.model_validate({key: getattr(WIDEST_LIMITS, key) + 1})
