"""The torchvision backend, for engines that resize with it, and Kimi's layout, compared with transformers."""

import importlib
import random
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from renderers_adapter.geometry import geometry_for
from rollout.errors import ConfigurationError
from rollout.images.processors import ResizeBackend, image_processor_for
from tests.needs.torch.processors import QWEN

torch: Any = importlib.import_module("torch")
transformers_kimi: Any = importlib.import_module("transformers.models.kimi_k25.image_processing_kimi_k25")
transformers_qwen: Any = importlib.import_module("transformers.models.qwen2_vl.image_processing_qwen2_vl")
Kimi_K25ImageProcessor = transformers_kimi.Kimi_K25ImageProcessor

KIMI: dict[str, Any] = {
    "patch_size": 14,
    "merge_size": 2,
    "max_patches": 200,
    "size": {"max_height": 64, "max_width": 64},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.25, 0.2],
}
BACKENDS: tuple[ResizeBackend, ...] = ("pil", "torchvision")
SIZES = [(1, 1), (300, 2), (231, 117), (640, 480)]


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize(
    ("family", "config", "processor"),
    [("qwen_vl", QWEN, transformers_qwen.Qwen2VLImageProcessor), ("kimi_k25", KIMI, Kimi_K25ImageProcessor)],
)
def test_pixels_are_those_of_transformers_with_torchvision(
    family: str, config: dict[str, Any], processor: Any, width: int, height: int
) -> None:
    image = picture(width, height)
    ours = image_processor_for(family, config, backend="torchvision", pixels="normalised").process(image)
    theirs = processor.from_dict(config)(images=[image], return_tensors="pt")
    assert ours.grid == tuple(theirs["image_grid_thw"][0].tolist())
    assert torch.equal(torch.from_numpy(ours.patches), theirs["pixel_values"])


def test_the_two_backends_are_close_but_not_equal() -> None:
    pil, torchvision = (
        image_processor_for("qwen_vl", QWEN, backend=backend, pixels="uint8").process(picture(231, 117)).patches
        for backend in BACKENDS
    )
    differences = np.abs(pil.astype(int) - torchvision.astype(int))
    assert pil.dtype == torchvision.dtype == np.uint8
    assert 0 < differences.max() <= 2


def test_kimis_layout_is_that_of_transformers_on_1000_sizes() -> None:
    default = {**KIMI, "max_patches": 16384, "size": {"max_height": 512, "max_width": 512}}
    rng = random.Random(3)
    for config in (KIMI, default):
        geometry, processor = geometry_for("kimi_k25", config), Kimi_K25ImageProcessor.from_dict(config)
        for _ in range(1_000):
            width, height = (round(2 ** rng.uniform(0, 13.5)) for _ in range(2))
            patches = processor.get_number_of_image_patches(height, width)
            assert geometry.layout(width=width, height=height).tokens * 4 == patches, (width, height)


def test_a_missing_backend_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.qwen2_vl.image_processing_qwen2_vl", None)
    processor = image_processor_for("qwen_vl", QWEN, backend="torchvision", pixels="uint8")
    with pytest.raises(ConfigurationError, match="pip install 'rollout-rl"):
        processor.process(picture(64, 64))
