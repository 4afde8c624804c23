"""The materializer before it needs torch: no images, the family of a checkpoint, an extra that is not installed."""

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.errors import AdapterError
from renderers_adapter.geometry import GeometryError
from rollout.errors import ConfigurationError
from rollout.images import processors as image_processors
from rollout.images.processors import (
    QwenVLImageProcessor,
    family_of_checkpoint,
    image_processor_for,
    installed_backend,
)
from rollout.trainer.batches.materialize import Materializer

QWEN: dict[str, Any] = {
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 4096, "longest_edge": 30_000},
}


def test_no_images_need_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert Materializer("qwen_vl", QWEN, backend="pil").inputs([]) == {}


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'rollout-rl\[trainer\]'"):
        image_processors.import_trainer_extra("transformers.models.qwen2_vl")


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no image processor is known for the family 'other'"):
        image_processor_for("other", QWEN, backend="pil", pixels="normalised")


def test_a_configuration_without_settings_is_refused() -> None:
    with pytest.raises(GeometryError, match="patch_size"):
        image_processor_for("qwen_vl", {}, backend="pil", pixels="normalised")


@pytest.mark.parametrize(
    ("model_type", "family"), [("qwen2_5_vl", "qwen_vl"), ("qwen3_vl_moe", "qwen_vl"), ("kimi_k25", "kimi_k25")]
)
def test_the_model_type_of_a_checkpoint_decides_its_family(tmp_path: Path, model_type: str, family: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert family_of_checkpoint(tmp_path) == family


def test_an_unknown_model_type_is_named_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    expected = (
        r"the model_type 'qwen3', but images are known only for qwen2_vl, .* A text-only model needs no materializer"
    )
    with pytest.raises(ConfigurationError, match=expected):
        Materializer.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": ["qwen3_vl"]}'])
def test_a_configuration_without_a_model_type_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"config\.json .*model_type"):
        family_of_checkpoint(tmp_path)


def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.json cannot be read: No such file"):
        Materializer.from_pretrained(tmp_path / "nowhere")


def test_a_checkpoint_without_a_processor_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    with pytest.raises(AdapterError, match=r"neither preprocessor_config\.json nor processor_config\.json"):
        Materializer.from_pretrained(tmp_path)


def test_a_named_family_needs_no_known_model_type(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(QWEN))
    assert Materializer.from_pretrained(tmp_path, family="qwen_vl", backend="pil").position_axes == 3


@pytest.mark.parametrize(
    ("spec", "backend"), [(None, "pil"), (importlib.machinery.ModuleSpec("x", None), "torchvision")]
)
def test_the_backend_is_torchvision_if_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, spec: importlib.machinery.ModuleSpec | None, backend: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", importlib.util)
    assert installed_backend() == backend


def test_a_torchvision_that_cannot_be_imported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(ConfigurationError, match="torchvision is installed, but cannot be imported"):
        installed_backend()


def test_a_third_party_registers_a_family_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Processor(QwenVLImageProcessor):
        model_types = ("third_vl",)

    class Point:
        name = "third_party"

        @staticmethod
        def load() -> type[QwenVLImageProcessor]:
            return Processor

    def installed(*, group: str, name: str = "third_party") -> list[type[Point]]:
        return [Point] if (group, name) == ("rollout.image_processors", "third_party") else []

    monkeypatch.setattr(image_processors, "entry_points", installed)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "third_vl"}))
    assert family_of_checkpoint(tmp_path) == "third_party"
    assert image_processor_for("third_party", QWEN, backend="pil", pixels="uint8").patch_shape() == (1536,)


def test_the_name_of_a_built_in_model_is_no_checkpoint() -> None:
    with pytest.raises(ConfigurationError, match=r"builtin:tiny is the name of a model without weights.* model\.path"):
        Materializer.from_pretrained("builtin:tiny")
