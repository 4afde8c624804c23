"""Mutated images and data: URIs against preparation: each is refused by name, or a full decode confirms what it said.

    python tests/fuzz/fuzz_images.py --count 20000 --seed 0

Prints counts; the exit code is 1 if anything went wrong: another exception than ImageError, a size that the decoder
does not confirm, a case over a second, or more than 200 MB of memory above what the interpreter and its imports take.
"""

import argparse
import base64
import collections
import contextlib
import hashlib
import io
import random
import resource
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from rollout.images import ImageError, ImagePolicy, PreparedImage, prepare_images

SLOWEST_ALLOWED = 1.0
MEMORY_ALLOWED = 200 * 1024 * 1024

Mutation = Callable[[random.Random, bytes, list[bytes]], bytes]


@dataclass(frozen=True)
class Seed:
    """One valid image of the corpus."""

    name: str
    data: bytes


def corpus(rng: random.Random) -> list[Seed]:
    """Every format in every mode that Pillow writes, small, some with metadata, frames and odd sizes."""
    seeds = []
    for width, height in [(1, 1), (7, 5), (33, 17), (64, 48)]:
        picture = noise(rng, width, height)
        for name, image, options in variants(picture):
            file = io.BytesIO()
            image.save(file, **options)
            seeds.append(Seed(f"{name} {width}x{height}", file.getvalue()))
    return seeds


def noise(rng: random.Random, width: int, height: int) -> Image.Image:
    """A smooth random picture with an alpha channel."""
    small = Image.frombytes("RGBA", (4, 4), rng.randbytes(64))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def variants(picture: Image.Image) -> Iterator[tuple[str, Image.Image, dict[str, Any]]]:
    """The picture in each format and mode with the options that write it."""
    rgb, flipped = picture.convert("RGB"), ImageOps.flip(picture)
    palette = rgb.quantize(16)
    for mode in ("1", "L", "LA", "RGB", "RGBA", "I;16"):
        deep = picture.convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
        yield f"png {mode}", deep, {"format": "PNG"}
    yield "png P", palette, {"format": "PNG"}
    yield "png P transparent", palette, {"format": "PNG", "transparency": 3}
    yield "png L transparent", picture.convert("L"), {"format": "PNG", "transparency": 7}
    yield "png animated", picture, {"format": "PNG", "save_all": True, "append_images": [flipped]}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"jpeg exif {orientation}", rgb, {"format": "JPEG", "exif": exif}
        yield f"webp exif {orientation}", rgb, {"format": "WEBP", "exif": exif}
        yield f"png exif {orientation}", rgb, {"format": "PNG", "exif": exif}
    for sampling in (0, 1, 2):
        yield f"jpeg sampling {sampling}", rgb, {"format": "JPEG", "subsampling": sampling}
    yield "jpeg L", picture.convert("L"), {"format": "JPEG"}
    yield "jpeg CMYK", rgb.convert("CMYK"), {"format": "JPEG"}
    yield "jpeg progressive", rgb, {"format": "JPEG", "progressive": True}
    yield "jpeg optimised", rgb, {"format": "JPEG", "optimize": True}
    yield "jpeg restarts", rgb, {"format": "JPEG", "restart_marker_blocks": 1}
    yield "jpeg commented", rgb, {"format": "JPEG", "comment": b"a comment", "icc_profile": b"\0" * 40}
    yield "mpo", rgb, {"format": "MPO", "save_all": True, "append_images": [flipped.convert("RGB")]}
    yield "gif", palette, {"format": "GIF"}
    yield "gif transparent", palette, {"format": "GIF", "transparency": 3}
    yield "gif animated", palette, {"format": "GIF", "save_all": True, "append_images": [flipped.convert("RGB")]}
    yield "webp lossy", rgb, {"format": "WEBP"}
    yield "webp lossless", picture, {"format": "WEBP", "lossless": True}
    yield "webp alpha", picture, {"format": "WEBP"}
    yield "webp animated", picture, {"format": "WEBP", "save_all": True, "append_images": [flipped]}
    for mode in ("1", "L", "RGB", "RGBA"):
        yield f"bmp {mode}", picture.convert(mode), {"format": "BMP"}
    yield "bmp P", palette, {"format": "BMP"}


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
    """A mutation that a checksum would give away, with the checksums made right again."""
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
    """Damage below the compression: another filter byte, fewer rows, or far more of them."""
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
    """A data: URI of the bytes; one in eight is damaged in its text instead."""
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


def reference_size(data: bytes) -> tuple[int, int]:
    """The displayed size that a full decode finds, by Pillow alone."""
    image: Image.Image = Image.open(io.BytesIO(data))
    image.load()
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    return image.size


def check(image: PreparedImage, uri: str) -> str | None:
    """What is wrong with an accepted image, if anything."""
    data = base64.b64decode(uri.partition(",")[2], validate=True)
    if hashlib.sha256(data).hexdigest() != image.sha256 or len(data) != image.n_bytes:
        return "the identity is not that of the bytes"
    try:
        size = reference_size(data)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return f"accepted, but a full decode fails: {error!r}"
    return None if size == (image.width, image.height) else f"said {image.width}x{image.height}, decodes to {size}"


def run(count: int, seed: int) -> int:
    """Run the cases, print the counts, and return the exit code."""
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    seeds = corpus(rng)
    others = [one.data for one in seeds]
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    problems: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as directory:
        policy = ImagePolicy(mode="inline", directory=Path(directory))
        memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        for case in range(count):
            origin, mutation = rng.choice(seeds), rng.choice(MUTATIONS)
            uri = as_uri(rng, mutation(rng, origin.data, others))
            message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}
            label = f"case {case}, {mutation.__name__} of {origin.name}"
            started = time.perf_counter()
            try:
                image = prepare_images([message], policy).images[0]
            except ImageError as error:
                counts["refused"] += 1
                reasons[" ".join(word for word in error.reason.split()[:6] if not any(map(str.isdigit, word)))] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                problems.append(f"{label}: {error!r}")
            else:
                counts["accepted and confirmed by a full decode"] += 1
                if problem := check(image, uri):
                    problems.append(f"{label}: {problem}")
            slowest = max(slowest, time.perf_counter() - started)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - memory_before
    if slowest > SLOWEST_ALLOWED:
        problems.append(f"the slowest case took {slowest:.2f} s")
    if memory > MEMORY_ALLOWED:
        problems.append(f"memory grew by {memory / 1e6:.0f} MB")
    counts["accepted and confirmed by a full decode"] -= sum("case " in problem for problem in problems)
    print(f"cases {count} from {len(seeds)} images, seed {seed}")
    for name, number in counts.most_common():
        print(f"  {name}: {number}")
    for name, number in reasons.most_common(20):
        print(f"    {number:6} {name}")
    print(f"slowest {slowest * 1000:.0f} ms, memory +{memory / 1e6:.0f} MB, problems {len(problems)}")
    for problem in problems[:20]:
        print("  PROBLEM", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(run(arguments.count, arguments.seed))
