"""Our placeholder counts equal those of transformers' image processor, for random sizes."""

import importlib
import random
from typing import Any

import pytest
from PIL import Image

from renderers_adapter.geometry import GeometryError, geometry_for

transformers_qwen: Any = importlib.import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
Qwen2VLImageProcessorPil = transformers_qwen.Qwen2VLImageProcessorPil

QWEN3_VL = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
CONFIGS: list[dict[str, Any]] = [
    {**QWEN3_VL, "size": {"shortest_edge": 65536, "longest_edge": 16777216}},
    {**QWEN3_VL, "patch_size": 14, "min_pixels": 3136, "max_pixels": 12845056},
    {**QWEN3_VL, "size": {"shortest_edge": 1024, "longest_edge": 40_000}},
]


def random_sizes(count: int) -> list[tuple[int, int]]:
    """Return sizes of every magnitude, including thin and tiny ones."""
    rng = random.Random(7)
    sizes = []
    for _ in range(count):
        width, height = (round(2 ** rng.uniform(0, 13)) for _ in range(2))
        if rng.random() < 0.2:
            height = max(1, round(width / rng.uniform(150, 250)))
        sizes.append((height, width) if rng.random() < 0.5 else (width, height))
    return sizes


@pytest.mark.parametrize("config", CONFIGS)
def test_every_size_has_the_patches_that_the_processor_computes(config: dict[str, Any]) -> None:
    geometry, processor = geometry_for("qwen_vl", config), Qwen2VLImageProcessorPil.from_dict(config)
    refused = 0
    for width, height in random_sizes(1_000):
        try:
            layout = geometry.layout(width=width, height=height)
        except GeometryError:
            refused += 1
            with pytest.raises(ValueError, match="aspect ratio"):
                processor.get_number_of_image_patches(height, width)
            continue
        assert layout.tokens * 4 == processor.get_number_of_image_patches(height, width), (width, height)
    assert 50 < refused < 500


@pytest.mark.parametrize("config", CONFIGS)
def test_every_size_has_the_grid_of_the_processed_image(config: dict[str, Any]) -> None:
    geometry, processor = geometry_for("qwen_vl", config), Qwen2VLImageProcessorPil.from_dict(config)
    small = [(w, h) for w, h in random_sizes(400) if w * h < 200_000 and max(w, h) / min(w, h) <= 200]
    for width, height in small[:60]:
        out = processor(images=[Image.new("RGB", (width, height))], return_tensors="np")
        assert geometry.layout(width=width, height=height).grid == tuple(out["image_grid_thw"][0]), (width, height)
