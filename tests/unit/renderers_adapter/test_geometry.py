"""Placeholder counts: a table of sizes, the limits, and the settings of the processor."""

import hashlib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderers_adapter.geometry import (
    Geometry,
    GeometryError,
    UnknownFamily,
    geometry_for,
    known_families,
    layout_fingerprint,
    registry,
)
from renderers_adapter.geometry.qwen_vl import QwenVLGeometry

QWEN3_VL: dict[str, Any] = {
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
}
QWEN25_VL: dict[str, Any] = {
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_pixels": 3136,
    "max_pixels": 12845056,
}
KIMI_K25: dict[str, Any] = {
    "patch_size": 14,
    "merge_kernel_size": 2,
    "in_patch_limit": 16384,
    "patch_limit_on_one_side": 512,
    "fixed_output_tokens": None,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}

TABLE = [
    # height, width, Qwen3-VL, Qwen2.5-VL, Kimi K2.5 as (grid h, grid w, tokens)
    (1, 1, (16, 16, 64), (4, 4, 4), (2, 2, 1)),
    (32, 32, (16, 16, 64), (4, 4, 4), (4, 4, 4)),
    (64, 256, (8, 32, 64), (4, 18, 18), (6, 20, 30)),
    (512, 512, (32, 32, 256), (36, 36, 324), (38, 38, 361)),
    (600, 800, (38, 50, 475), (42, 58, 609), (44, 58, 638)),
    (1080, 1920, (68, 120, 2040), (78, 138, 2691), (78, 138, 2691)),
    (4096, 4096, (256, 256, 16384), (256, 256, 16384), (130, 130, 4225)),
]
CASES = [
    (family, config, height, width, expected)
    for height, width, qwen3, qwen25, kimi in TABLE
    for family, config, expected in [
        ("qwen_vl", QWEN3_VL, qwen3),
        ("qwen_vl", QWEN25_VL, qwen25),
        ("kimi_k25", KIMI_K25, kimi),
    ]
]

sides = st.integers(min_value=1, max_value=20_000)


@pytest.mark.parametrize(("family", "config", "height", "width", "expected"), CASES)
def test_layouts_equal_the_table(
    family: str, config: dict[str, Any], height: int, width: int, expected: tuple[int, int, int]
) -> None:
    layout = geometry_for(family, config).layout(width=width, height=height)
    assert (*layout.grid, layout.tokens) == (1, *expected)


def test_qwen_refuses_an_image_that_is_too_thin() -> None:
    assert geometry_for("qwen_vl", QWEN25_VL).layout(width=2000, height=10).tokens == 29
    with pytest.raises(GeometryError, match="1:200"):
        geometry_for("qwen_vl", QWEN3_VL).layout(width=3201, height=16)


def test_kimi_accepts_an_image_that_is_too_thin_for_qwen() -> None:
    layout = geometry_for("kimi_k25", KIMI_K25).layout(width=3201, height=16)
    assert (layout.grid, layout.tokens) == ((1, 2, 230), 115)


@pytest.mark.parametrize(("family", "config"), [("qwen_vl", QWEN3_VL), ("kimi_k25", KIMI_K25)])
@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (-1, 5)])
def test_a_size_without_pixels_is_refused(family: str, config: dict[str, Any], width: int, height: int) -> None:
    with pytest.raises(GeometryError, match="no pixels"):
        geometry_for(family, config).layout(width=width, height=height)


@given(width=sides, height=sides)
def test_qwen_stays_within_its_pixel_budget(width: int, height: int) -> None:
    geometry = QwenVLGeometry.from_processor_config(QWEN3_VL)
    if max(width, height) / min(width, height) > 200:
        return
    resized_width, resized_height = geometry.resized(width=width, height=height)
    assert resized_width % 32 == 0 == resized_height % 32
    assert resized_width * resized_height >= 65536
    assert resized_width * resized_height <= 16777216 or 32 in (resized_width, resized_height)


@given(width=sides, height=sides)
def test_kimi_stays_within_its_side_limit(width: int, height: int) -> None:
    layout = geometry_for("kimi_k25", KIMI_K25).layout(width=width, height=height)
    assert max(layout.grid) <= 512
    assert layout.grid[1] * layout.grid[2] == layout.tokens * 4


@given(width=st.integers(1, 2000), height=st.integers(10, 2000))
def test_the_grid_can_be_read_from_a_payload(width: int, height: int) -> None:
    for geometry in (geometry_for("qwen_vl", QWEN3_VL), geometry_for("kimi_k25", KIMI_K25)):
        layout = geometry.layout(width=max(width, height // 200 + 1), height=height)
        payload = geometry.payload(layout)
        assert geometry.grid(payload) == layout.grid
        assert geometry.grid({geometry.grid_key: list(layout.grid)}) == layout.grid
        assert geometry.tokens(layout.grid) == layout.tokens


@pytest.mark.parametrize(
    "payload",
    [{}, {"image_grid_thw": []}, {"image_grid_thw": [[1, 2]]}, {"image_grid_thw": [[1, 0, 2]]},
     {"image_grid_thw": [[1, 2, True]]}, {"image_grid_thw": "1x2x3"}, {"grid_thws": [[1, 2, 2]]}],
)  # fmt: skip
def test_a_payload_in_another_form_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(GeometryError, match="image_grid_thw"):
        geometry_for("qwen_vl", QWEN3_VL).grid(payload)


def test_fixed_output_tokens_override_the_grid() -> None:
    geometry = geometry_for("kimi_k25", {**KIMI_K25, "fixed_output_tokens": 7})
    assert geometry.layout(width=512, height=512).tokens == 7


def test_the_three_spellings_of_kimis_configuration_agree() -> None:
    nested: dict[str, Any] = {"media_proc_cfg": {**KIMI_K25, "merge_kernel_size": [2, 2]}, "model_type": "kimi_k25"}
    transformers: dict[str, Any] = {
        "patch_size": 14,
        "merge_size": 2,
        "max_patches": 16384,
        "size": {"max_height": 512, "max_width": 512},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    assert geometry_for("kimi_k25", nested) == geometry_for("kimi_k25", KIMI_K25)
    assert geometry_for("kimi_k25", transformers).fingerprint == geometry_for("kimi_k25", KIMI_K25).fingerprint


def test_qwen_reads_a_nested_processor_configuration() -> None:
    assert geometry_for("qwen_vl", {"image_processor": QWEN3_VL}) == geometry_for("qwen_vl", QWEN3_VL)


def test_explicit_pixel_bounds_replace_the_size_entry() -> None:
    config = {**QWEN3_VL, "min_pixels": 1024, "max_pixels": 4096}
    assert QwenVLGeometry.from_processor_config(config).max_pixels == 4096


@pytest.mark.parametrize(
    ("family", "config", "key"),
    [
        ("qwen_vl", {**QWEN3_VL, "size": {}}, "min_pixels"),
        ("qwen_vl", {**QWEN3_VL, "patch_size": 0}, "patch_size"),
        ("qwen_vl", {**QWEN3_VL, "min_pixels": 10, "max_pixels": 5}, "min_pixels"),
        ("qwen_vl", {}, "patch_size"),
        ("kimi_k25", {**KIMI_K25, "in_patch_limit": "many"}, "in_patch_limit"),
        ("kimi_k25", {**KIMI_K25, "image_mean": [0.5]}, "image_mean"),
        ("kimi_k25", {**KIMI_K25, "size": {"max_height": 512, "max_width": 256}}, "max_width"),
    ],
)
def test_the_error_of_an_invalid_setting_names_it(family: str, config: dict[str, Any], key: str) -> None:
    with pytest.raises(GeometryError, match=key):
        geometry_for(family, config)


def test_the_fingerprint_is_the_hash_of_the_sorted_settings() -> None:
    text = (
        "image-layout:v1:qwen_vl:max_pixels=16777216:merge_size=2:min_pixels=65536:patch_size=16:temporal_patch_size=2"
    )
    assert geometry_for("qwen_vl", QWEN3_VL).fingerprint == hashlib.sha256(text.encode()).hexdigest()[:32]
    kimi = (
        "image-layout:v1:kimi_k25:fixed_output_tokens=null:image_mean=[0.5,0.5,0.5]:image_std=[0.5,0.5,0.5]"
        ":in_patch_limit=16384:merge_kernel_size=2:patch_limit_on_one_side=512:patch_size=14"
    )
    assert geometry_for("kimi_k25", KIMI_K25).fingerprint == hashlib.sha256(kimi.encode()).hexdigest()[:32]


def test_a_fingerprint_needs_a_family_name() -> None:
    with pytest.raises(GeometryError, match="family"):
        layout_fingerprint("a:b", {})


def test_the_error_of_an_unknown_family_says_what_happens_without_geometry() -> None:
    with pytest.raises(UnknownFamily, match=r"Did you mean 'qwen_vl'\?.*engine's own expansion"):
        geometry_for("qwen-vl", QWEN3_VL)


def test_another_family_is_not_suggested() -> None:
    with pytest.raises(UnknownFamily) as refusal:
        geometry_for("kimi_vl", QWEN3_VL)
    assert "did you mean" not in str(refusal.value)


class ThirdPartyGeometry(QwenVLGeometry):
    """A geometry of another distribution."""

    family = "third_party"


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution that registers a family, and one whose entry point is not a geometry."""
    points = EntryPoints(
        EntryPoint(name, value, registry.ENTRY_POINT_GROUP)
        for name, value in [("third_party", f"{__name__}:ThirdPartyGeometry"), ("broken", "json:dumps")]
    )
    monkeypatch.setattr(registry, "entry_points", lambda **select: points.select(**select))
    monkeypatch.setattr(EntryPoint, "load", lambda self: globals().get(self.attr, self.attr))
    registry._geometry_class.cache_clear()
    yield
    registry._geometry_class.cache_clear()


def test_a_third_party_registers_a_family_by_entry_point(third_party: None) -> None:
    geometry = geometry_for("third_party", QWEN3_VL)
    assert isinstance(geometry, Geometry)
    assert geometry.family == "third_party"
    assert known_families() == ("broken", "kimi_k25", "qwen_vl", "third_party")


def test_an_entry_point_that_is_not_a_geometry_is_refused_by_name(third_party: None) -> None:
    with pytest.raises(GeometryError, match="json:dumps"):
        geometry_for("broken", QWEN3_VL)
