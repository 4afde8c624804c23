"""Pixels as the engine loads them: upright, first frame, transparency on white, RGB."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from rollout.images import ImageError, load_pixels

TURNS: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda image: image,
    2: ImageOps.mirror,
    3: lambda image: image.rotate(180),
    4: ImageOps.flip,
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_each_orientation_is_applied(encode: Any, picture: Any, orientation: int) -> None:
    shown = load_pixels(encode("PNG", orientation=orientation))
    expected = TURNS[orientation](picture().convert("RGB"))
    assert np.array_equal(np.asarray(shown), np.asarray(expected))


def test_an_orientation_that_is_only_in_xmp_is_applied(encode: Any) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    assert load_pixels(encode("JPEG", xmp=xmp)).size == (8, 12)


def test_metadata_that_cannot_be_read_is_ignored(encode: Any) -> None:
    assert load_pixels(encode("JPEG", exif=b"Exif\0\0garbage")).size == (12, 8)


def on_white(picture: Image.Image) -> np.ndarray[Any, Any]:
    rgba = np.asarray(picture.convert("RGBA"), dtype=np.float64)
    share = rgba[..., 3:] / 255
    blended: np.ndarray[Any, Any] = rgba[..., :3] * share + 255 * (1 - share)
    return blended


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_blended_with_white(encode: Any, picture: Any, mode: str) -> None:
    shown = np.asarray(load_pixels(encode("PNG", mode=mode)), dtype=np.float64)
    assert np.abs(shown - on_white(picture().convert(mode))).max() <= 1


@pytest.mark.parametrize("format_name", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(encode: Any, format_name: str) -> None:
    data = encode(format_name, mode="P", transparency=0)
    indices = np.asarray(Image.open(io.BytesIO(data)))
    shown = np.asarray(load_pixels(data))
    assert (indices == 0).any()
    assert (shown[indices == 0] == 255).all()


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_is_used(encode: Any, picture: Any, format_name: str) -> None:
    options: dict[str, Any] = {"lossless": True} if format_name == "WEBP" else {}
    data = encode(format_name, save_all=True, append_images=[picture(seed=9).convert("RGB")], **options)
    still = encode(format_name, **options)
    assert np.array_equal(np.asarray(load_pixels(data)), np.asarray(load_pixels(still)))


@pytest.mark.parametrize(
    ("format_name", "mode"),
    [("PNG", "1"), ("PNG", "L"), ("PNG", "I;16"), ("PNG", "P"), ("JPEG", "CMYK"), ("JPEG", "L"), ("BMP", "1")],
)
def test_every_mode_becomes_rgb(encode: Any, format_name: str, mode: str) -> None:
    shown = load_pixels(encode(format_name, mode=mode))
    assert (shown.mode, shown.size) == ("RGB", (12, 8))


def test_a_format_that_runs_do_not_accept_is_refused(encode: Any) -> None:
    with pytest.raises(ImageError, match="TIFF"):
        load_pixels(encode("TIFF"))


def test_damaged_pixels_are_an_image_error(encode: Any) -> None:
    data = bytearray(encode("PNG"))
    data[data.index(b"IDAT") + 8] ^= 0xFF
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_pixels(bytes(data))
