"""Measures what images cost a worker, and compares it with the least possible cost. Medians of one run.

    python benchmarks/images.py [--json]

- offload: a new JPEG in a message is decoded, hashed, checked and stored. The floor only decodes strict base64,
  computes the SHA-256, writes and renames.
- prepared: a conversation of 64 images that are all known.
- descriptor: the layout and the descriptor of one image, compared with transformers' image processor if it is
  installed.
"""

import argparse
import base64
import binascii
import gc
import hashlib
import importlib
import importlib.util
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from renderers_adapter.descriptors import raw_mm_item
from renderers_adapter.geometry import geometry_for
from rollout.images import ImagePolicy, load_pixels, prepare_images

QWEN3_VL = {
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
}
SIZES = ((224, 224), (1024, 768), (1920, 1080))


def photo(width: int, height: int, seed: int) -> bytes:
    """Return a JPEG with the details of a photo: smooth shapes and some grain."""
    rng = np.random.default_rng(seed)
    shapes = Image.fromarray(rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8))
    smooth = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grainy = np.clip(smooth + rng.integers(-12, 13, smooth.shape, dtype=np.int16), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grainy).save(file, "JPEG", quality=90)
    return file.getvalue()


def data_uri(data: bytes) -> str:
    """Return the `data:` URI of a JPEG."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def message(uri: str) -> dict[str, Any]:
    """Return a message with an image."""
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}


def store_floor(uri: str, directory: str) -> None:
    """Store an image with the least possible work."""
    data = binascii.a2b_base64(uri[uri.index(",") + 1 :], strict_mode=True)
    name = hashlib.sha256(data).hexdigest()
    temporary = f"{directory}/{name}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(fd, data)
    os.close(fd)
    os.rename(temporary, f"{directory}/{name}.jpg")


def milliseconds(work: Callable[[], object]) -> float:
    """Return how many milliseconds a call takes."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def offload(width: int, height: int, repeats: int) -> dict[str, float]:
    """Measure floor and offload in turn, each with its own images and directory, so that they share no cache."""
    with tempfile.TemporaryDirectory() as directory:
        policy = ImagePolicy(mode="offload", directory=Path(directory) / "images")
        os.mkdir(f"{directory}/floor")
        prepare_images([message(data_uri(photo(8, 8, 0)))], policy)
        images = [photo(width, height, seed) for seed in range(2 * repeats)]
        uris = [data_uri(data) for data in images]
        floor_times, offload_times = [], []
        for index in range(0, len(uris), 2):
            for image_index in (index, index + 1) if index % 4 else (index + 1, index):
                if image_index % 2:
                    floor_times.append(milliseconds(partial(store_floor, uris[image_index], f"{directory}/floor")))
                else:
                    offload_times.append(milliseconds(partial(prepare_images, [message(uris[image_index])], policy)))
    floor_ms, offload_ms = statistics.median(floor_times), statistics.median(offload_times)
    kilobytes = statistics.median(map(len, images)) / 1000
    return {"kB": round(kilobytes), "floor_ms": floor_ms, "offload_ms": offload_ms, "ratio": offload_ms / floor_ms}


def prepared(images: int = 64) -> float:
    """Return how many milliseconds it takes to prepare a conversation of known images."""
    with tempfile.TemporaryDirectory() as directory:
        policy = ImagePolicy(mode="offload", directory=Path(directory))
        conversation = [message(data_uri(photo(64, 64, seed))) for seed in range(images)]
        prepare_images(conversation, policy)
        return statistics.median(milliseconds(lambda: prepare_images(conversation, policy)) for _ in range(51))


def descriptor(width: int, height: int) -> dict[str, float]:
    """Measure the descriptor of an image, and transformers' image processor if it is installed."""
    geometry = geometry_for("qwen_vl", QWEN3_VL)
    name = "0" * 64 + ".jpg"

    def describe() -> None:
        layout = geometry.layout(width=width, height=height)
        raw_mm_item(
            family=geometry.family,
            fingerprint=geometry.fingerprint,
            payload=geometry.payload(layout),
            raw_image_id=name,
        )

    figures = {"descriptor_ms": statistics.median(milliseconds(describe) for _ in range(501))}
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        module = importlib.import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
        processor = module.Qwen2VLImageProcessorPil(**QWEN3_VL)
        pixels = load_pixels(photo(width, height, 0))
        figures["processor_ms"] = statistics.median(milliseconds(lambda: processor(images=[pixels])) for _ in range(9))
        figures["times_faster"] = figures["processor_ms"] / figures["descriptor_ms"]
    return figures


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60, help="how many images to offload for each size")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    arguments = parser.parse_args()
    gc.disable()
    results: dict[str, Any] = {
        f"offload {width}x{height}": offload(width, height, arguments.repeats) for width, height in SIZES
    }
    results["prepared 64 images"] = {"ms": prepared()}
    results.update({f"descriptor {width}x{height}": descriptor(width, height) for width, height in SIZES})
    if arguments.json:
        print(json.dumps(results))
        return
    for name, figures in results.items():
        print(f"{name:22}", "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
