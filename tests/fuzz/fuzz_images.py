"""Prepares mutated images and data: URIs: each is refused by name, or a full decode confirms its description.

python tests/fuzz/fuzz_images.py --count 20000 --seed 0
"""

import base64
import functools
import io
import random
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image, ImageOps

from tests.fuzz.image_attempt import fuzz_images

Mutation = Callable[[random.Random, bytes, list[bytes]], bytes]


@functools.cache
def corpus() -> list[bytes]:
    """Return small images in every format and mode that Pillow writes, some with metadata, frames and odd sizes."""
    chance = random.Random(0)
    seeds = []
    for width, height in [(1, 1), (7, 5), (33, 17)]:
        for image, options in variants(noise(chance, width, height)):
            file = io.BytesIO()
            image.save(file, **options)
            seeds.append(file.getvalue())
    return seeds


def noise(rng: random.Random, width: int, height: int) -> Image.Image:
    """Return a smooth random picture with an alpha channel."""
    small = Image.frombytes("RGBA", (4, 4), rng.randbytes(64))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def variants(picture: Image.Image) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    """Yield the picture in each format and mode, with the options to save it."""
    rgb, flipped = picture.convert("RGB"), ImageOps.flip(picture)
    palette = rgb.quantize(16)
    for mode in ("1", "L", "LA", "RGB", "RGBA", "I;16"):
        deep = picture.convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
        yield deep, {"format": "PNG"}
    yield palette, {"format": "PNG"}
    yield palette, {"format": "PNG", "transparency": 3}
    yield picture.convert("L"), {"format": "PNG", "transparency": 7}
    yield picture, {"format": "PNG", "save_all": True, "append_images": [flipped]}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield rgb, {"format": "JPEG", "exif": exif}
        yield rgb, {"format": "WEBP", "exif": exif}
        yield rgb, {"format": "PNG", "exif": exif}
    for sampling in (0, 1, 2):
        yield rgb, {"format": "JPEG", "subsampling": sampling}
    yield picture.convert("L"), {"format": "JPEG"}
    yield rgb.convert("CMYK"), {"format": "JPEG"}
    yield rgb, {"format": "JPEG", "progressive": True}
    yield rgb, {"format": "JPEG", "optimize": True}
    yield rgb, {"format": "JPEG", "restart_marker_blocks": 1}
    yield rgb, {"format": "JPEG", "comment": b"a comment", "icc_profile": b"\0" * 40}
    yield rgb, {"format": "MPO", "save_all": True, "append_images": [flipped.convert("RGB")]}
    yield palette, {"format": "GIF"}
    yield palette, {"format": "GIF", "transparency": 3}
    yield palette, {"format": "GIF", "save_all": True, "append_images": [flipped.convert("RGB")]}
    yield rgb, {"format": "WEBP"}
    yield picture, {"format": "WEBP", "lossless": True}
    yield picture, {"format": "WEBP"}
    yield picture, {"format": "WEBP", "save_all": True, "append_images": [flipped]}
    for mode in ("1", "L", "RGB", "RGBA"):
        yield picture.convert(mode), {"format": "BMP"}
    yield palette, {"format": "BMP"}


def flip_bits(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def flip_header_bits(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        out[rng.randrange(min(len(out), 64))] ^= 1 << rng.randrange(8)
    return bytes(out)


def write_interesting_number(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    size, order = rng.choice([1, 2, 4]), rng.choice(["big", "little"])
    value = rng.choice([0, 1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**32 - 1]) % (1 << 8 * size)
    at = rng.randrange(len(data))
    return data[:at] + value.to_bytes(size, "big" if order == "big" else "little") + data[at + size :]


def truncate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    return data[: rng.randrange(len(data))]


def remove_range(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 40) :]


def repeat_range(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    start = rng.randrange(len(data))
    end = start + rng.randrange(1, 200)
    return data[:end] + data[start:]


def insert_noise(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]


def append_another_file(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    return data + rng.choice([rng.choice(others), b"PK\x03\x04" + rng.randbytes(30), b"<html></html>", b"\0" * 9])


def splice(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def mend_png_checksums(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Flip bits, and then correct the checksums."""
    out, at = bytearray(flip_bits(rng, data, others)), 8
    while at + 12 <= len(out):
        length = int.from_bytes(out[at : at + 4], "big")
        if at + 12 + length > len(out):
            break
        checksum = zlib.crc32(out[at + 4 : at + 8 + length])
        out[at + 8 + length : at + 12 + length] = checksum.to_bytes(4, "big")
        at += 12 + length
    return bytes(out)


def mutate_png_pixels(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Damage the pixels before compression: another filter byte, fewer rows, or far more rows."""
    start = data.find(b"IDAT")
    if not data.startswith(b"\x89PNG") or start < 0:
        return flip_bits(rng, data, others)
    length = int.from_bytes(data[start - 4 : start], "big")
    rows = bytearray(zlib.decompress(data[start + 4 : start + 4 + length]))
    kind = rng.randrange(3)
    if kind == 0:
        rows[rng.randrange(len(rows))] = rng.randrange(256)
    elif kind == 1:
        del rows[rng.randrange(len(rows)) :]
    else:
        rows.extend(bytes(rng.choice([1, 1_000, 20_000_000])))
    body = b"IDAT" + zlib.compress(bytes(rows), 1)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return data[: start - 4] + chunk + data[start + 8 + length :]


MUTATIONS: list[Mutation] = [
    flip_bits,
    flip_header_bits,
    write_interesting_number,
    truncate,
    remove_range,
    repeat_range,
    insert_noise,
    append_another_file,
    splice,
    mend_png_checksums,
    mutate_png_pixels,
]


def as_uri(rng: random.Random, data: bytes) -> str:
    """Return a data: URI of the bytes; the text of one in eight is damaged."""
    text = base64.b64encode(data).decode()
    prefix = "data:image/png;base64,"
    if rng.randrange(8):
        return prefix + text
    at = rng.randrange(len(text) + 1)
    return rng.choice(
        [
            prefix + text.rstrip("="),
            prefix + text + "=",
            prefix + text[:at] + "\n" + text[at:],
            prefix + text[:at] + " " + text[at:],
            prefix + text[:at] + "=" + text[at:],
            prefix + text[:at] + rng.choice("-_*é\0") + text[at:],
            prefix + text[:at],
            prefix[: rng.randrange(len(prefix))] + text,
            prefix.replace("image/png", rng.choice(["text/html", "image/svg+xml", "", "IMAGE/PNG"])) + text,
            prefix.replace(";base64", rng.choice(["", ";BASE64", ";base64;", ";charset=x;base64"])) + text,
            prefix.upper() + text,
        ]
    )


def make(chance: random.Random) -> str:
    seeds = corpus()
    return as_uri(chance, chance.choice(MUTATIONS)(chance, chance.choice(seeds), seeds))


if __name__ == "__main__":
    sys.exit(fuzz_images(__doc__ or "", make))
