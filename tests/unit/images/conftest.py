"""Pictures, their encodings and policies that the tests of this directory share."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rollout.images import ImagePolicy

Encode = Callable[..., bytes]


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """`picture(width, height, seed)`: a random RGBA picture; all of its corners differ."""

    def make(width: int = 12, height: int = 8, seed: int = 0) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
        return Image.fromarray(pixels, "RGBA")

    return make


@pytest.fixture(scope="session")
def encode(picture: Callable[..., Image.Image]) -> Encode:
    """`encode("PNG", mode="RGB", width=…, height=…, seed=…, **save_options)`: an encoded picture."""

    def make(
        format_name: str = "PNG",
        *,
        mode: str = "RGB",
        width: int = 12,
        height: int = 8,
        seed: int = 0,
        orientation: int | None = None,
        **options: Any,
    ) -> bytes:
        image = picture(width, height, seed)
        if mode == "P":
            image = image.convert("RGB").quantize(16)
        elif mode == "I;16":
            image = image.convert("I").point(lambda value: value * 200).convert("I;16")
        else:
            image = image.convert("RGB" if mode == "CMYK" else mode).convert(mode)
        if orientation is not None:
            exif = Image.Exif()
            exif[0x0112] = orientation
            options["exif"] = exif
        file = io.BytesIO()
        image.save(file, format_name, **options)
        return file.getvalue()

    return make


@pytest.fixture
def offload(tmp_path: Path) -> ImagePolicy:
    """An offloading policy on a fresh directory."""
    return ImagePolicy(mode="offload", directory=tmp_path / "run" / "assets" / "images")


@pytest.fixture
def inline(tmp_path: Path) -> ImagePolicy:
    """An inline policy on a fresh directory."""
    return ImagePolicy(mode="inline", directory=tmp_path / "run" / "assets" / "images")


@pytest.fixture(scope="session")
def data_uri() -> Callable[[bytes], str]:
    """`data_uri(data)`: these bytes, of any format, as a data: URI that declares PNG."""
    return lambda data: "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.fixture(scope="session")
def messages_with() -> Callable[[Any], list[dict[str, Any]]]:
    """`messages_with(url)`: messages with one canonical image part."""

    def make(url: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]

    return make
