"""A server without vLLM: a geometry, a pad token, a directory, and a processor that makes no tensors."""

import asyncio
import base64
import hashlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

PLUGIN = Path(__file__).parents[3] / "plugins" / "vllm" / "src"
# The plugin is installed only beside vLLM, so the tests import it from the source tree.
sys.path.insert(0, str(PLUGIN))

from rollout_vllm.contract.geometry import GeometryError, geometry_for  # type: ignore[import-not-found]  # noqa: E402
from rollout_vllm.encoded_image import EncodedImage  # type: ignore[import-not-found]  # noqa: E402
from rollout_vllm.errors import InvalidImageRef  # type: ignore[import-not-found]  # noqa: E402
from rollout_vllm.files import ImageFiles  # type: ignore[import-not-found]  # noqa: E402
from rollout_vllm.image_config import ServerImageConfig  # type: ignore[import-not-found]  # noqa: E402
from rollout_vllm.image_items import ImageItem  # type: ignore[import-not-found]  # noqa: E402
from rollout_vllm.resolver import ProcessedItem  # type: ignore[import-not-found]  # noqa: E402

PAD = 7
_KNOBS = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 1024, "max_pixels": 65536}


@dataclass(frozen=True)
class Picture:
    """An encoded image, and everything that a reference says about it."""

    data: bytes
    grid: tuple[int, int, int]
    tokens: int
    fingerprint: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def hash(self) -> str:
        return self.sha256[:32]

    @property
    def name(self) -> str:
        return self.sha256 + ".png"

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.data).decode()

    def fields(self, **changed: Any) -> dict[str, Any]:
        """Return the fields of a reference to the file; the value None removes a field."""
        fields = {
            "run_id": "run-1",
            "family": "qwen_vl",
            "fingerprint": self.fingerprint,
            "modality": "image",
            "mm_hash": self.hash,
            "payload": {"image_grid_thw": [list(self.grid)]},
            "raw_image_id": self.name,
        } | changed
        return {key: value for key, value in fields.items() if value is not None}

    def ref(self, **changed: Any) -> str:
        """Return a reference of version 3, written without the contract's code."""
        return "mmraw:v3:" + encode64(self.fields(**changed))

    def inline(self) -> str:
        return self.ref(raw_image_id=None, raw_uri=self.uri)


def encode64(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@dataclass
class Range:
    offset: int
    length: int


@dataclass
class Features:
    """`features` as vLLM has parsed them."""

    mm_hashes: dict[str, list[str]]
    mm_placeholders: dict[str, list[Range]]
    kwargs_data: dict[str, list[str | None]] | None
    mm_metadata: dict[str, list[str | None]] | None = None


@dataclass
class FakeProcessor:
    """Decodes with Pillow, and computes the layout. It waits for `gate`, and raises `fails`."""

    config: Any
    made: list[str] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event | None = None
    fails: Exception | None = None

    async def process(self, source: Any) -> Any:
        self.made.append(source.sha256)
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        try:
            with Image.open(io.BytesIO(source.data)) as image:
                layout = self.config.geometry.layout(width=image.width, height=image.height)
        except (OSError, GeometryError) as error:
            raise InvalidImageRef(str(error)) from error
        return ProcessedItem("tensors-of-" + source.sha256, layout.grid, "identity-" + source.sha256)

    def verify_tensors(self, item: Any) -> str:
        if not item.data.startswith("tensors-of-"):
            raise InvalidImageRef("these are not tensors", item.param)
        return "identity-" + str(item.data).removeprefix("tensors-of-")


@dataclass(frozen=True)
class Prompt:
    """Expanded tokens and features for some pictures, one after the other."""

    token_ids: list[int]
    features: Features


@dataclass(frozen=True)
class FakeServer:
    """The configuration of a server, and methods that make its requests."""

    config: Any
    directory: Path

    def picture(self, width: int = 96, height: int = 64, color: int = 0, *, stored: bool = True) -> Picture:
        buffer = io.BytesIO()
        Image.new("RGB", (width, height), (color % 256, color // 256, 9)).save(buffer, "PNG")
        layout = self.config.geometry.layout(width=width, height=height)
        picture = Picture(buffer.getvalue(), layout.grid, layout.tokens, self.config.geometry.fingerprint)
        if stored:
            (self.directory / picture.name).write_bytes(picture.data)
        return picture

    def prompt(self, *pictures: Picture, data: list[str | None] | None = None) -> Prompt:
        tokens, places = [1], []
        for picture in pictures:
            places.append(Range(len(tokens), picture.tokens))
            tokens += [PAD] * picture.tokens + [2]
        hashes = [picture.hash for picture in pictures]
        refs: list[str | None] = data if data is not None else [picture.ref() for picture in pictures]
        return Prompt(tokens, Features({"image": hashes}, {"image": places}, {"image": refs}))

    def item(self, picture: Picture, data: str) -> Any:
        return ImageItem("features.kwargs_data.image[0]", picture.hash, picture.tokens, data)


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    directory = tmp_path / "media"
    directory.mkdir()
    return FakeServer(
        ServerImageConfig("image", geometry_for("qwen_vl", _KNOBS), PAD, ImageFiles(str(directory)), 8), directory
    )


@pytest.fixture
def processor(server: FakeServer) -> FakeProcessor:
    return FakeProcessor(server.config)


@pytest.fixture
def v2() -> Callable[..., str]:
    """`v2(picture, **changed)`: a reference of version 2, written without the contract's code."""

    def make(picture: Picture, **changed: Any) -> str:
        fields = picture.fields(**changed)
        payload = fields["payload"] if isinstance(fields["payload"], str) else encode64(fields["payload"])
        names = ("run_id", "family", "fingerprint", "modality", "mm_hash", "raw_image_id")
        return ":".join(["mmraw:v2", *(str(fields[name]) for name in names), payload])

    return make


@pytest.fixture
def source() -> Callable[[Picture], Any]:
    def make(picture: Picture) -> Any:
        return EncodedImage(picture.sha256, picture.data)

    return make
