"""The materializer before it needs torch: no images, an unknown family, an extra that is not installed."""

import sys
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.geometry import GeometryError
from rollout.errors import ConfigurationError
from rollout.images import processors as image_processors
from rollout.images.processors import QwenVLImageProcessor, image_processor_for
from rollout.trainer.batches.materialize import Materializer

QWEN: dict[str, Any] = {
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 4096, "longest_edge": 30_000},
}


def test_no_images_need_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert Materializer("qwen_vl", QWEN, images=tmp_path, backend="pil").inputs([]) == {}


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'rollout-rl\[trainer\]'"):
        image_processors.import_trainer_extra("transformers.models.qwen2_vl")


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no image processor is known for the family 'other'"):
        Materializer("other", QWEN, images=tmp_path, backend="pil")


def test_a_configuration_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="patch_size"):
        Materializer("qwen_vl", {}, images=tmp_path, backend="pil")


def test_a_third_party_registers_a_family_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        @staticmethod
        def load() -> type[QwenVLImageProcessor]:
            return QwenVLImageProcessor

    def installed(*, group: str, name: str) -> list[type[Point]]:
        return [Point] if (group, name) == ("rollout.image_processors", "third_party") else []

    monkeypatch.setattr(image_processors, "entry_points", installed)
    assert image_processor_for("third_party", QWEN, backend="pil", pixels="uint8").patch_shape() == (1536,)
