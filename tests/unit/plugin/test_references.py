"""References that contradict their request or their server, in both versions, field by field."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollout_vllm.errors import InvalidImageRef  # type: ignore[import-not-found]
from rollout_vllm.references import check_reference, is_reference  # type: ignore[import-not-found]

BAD: dict[str, tuple[Any, ...]] = {
    "run_id": ("", "a/b", "run 1", "..\0", "run:1"),
    "family": ("", "qwen vl", "kimi_k25", "Qwen_VL", "../qwen_vl"),
    "fingerprint": ("", "0" * 32, "F" * 32, "ab", "0" * 65),
    "modality": ("", "video", "vision_chunk", "IMAGE", "im age"),
    "mm_hash": ("", "0" * 32, "G" * 32, "ab", "a" * 129),
    "raw_image_id": ("", "a/b.png", "/etc/passwd", "..\\x", "a b", "x\n"),
    "payload": (
        {},
        {"image_grid_thw": []},
        {"image_grid_thw": [[1, 4]]},
        {"image_grid_thw": [[1, 4, 0]]},
        {"image_grid_thw": [[1, 4, -6]]},
        {"image_grid_thw": [[1, 4, 6.0]]},
        {"image_grid_thw": [[True, 4, 6]]},
        {"image_grid_thw": [[1, 4, 8]]},
        {"image_grid_thw": [[1, 4, 6], [1, 4, 6]]},
        {"image_grid_thw": "1,4,6"},
        {"grid_thws": [[1, 4, 6]]},
        {"image_grid_thw": [[1, 4, 6]], "pixel_values": [1]},
    ),
}
CASES = [(name, value) for name, values in BAD.items() for value in values]


def test_a_valid_reference_of_each_version_is_accepted(server: Any, v2: Callable[..., str]) -> None:
    picture = server.picture(96, 64)
    for data in (picture.ref(), picture.inline(), v2(picture)):
        claim = check_reference(server.item(picture, data), server.config)
        assert (claim.grid, claim.ref.mm_hash) == ((1, 4, 6), picture.hash)


def test_a_flat_grid_is_read_too(server: Any) -> None:
    picture = server.picture(96, 64)
    item = server.item(picture, picture.ref(payload={"image_grid_thw": [1, 4, 6]}))
    assert check_reference(item, server.config).grid == (1, 4, 6)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_bad_field_is_refused_by_name(
    server: Any, v2: Callable[..., str], name: str, value: Any, version: int
) -> None:
    picture = server.picture(96, 64)
    data = v2(picture, **{name: value}) if version == 2 else picture.ref(**{name: value})
    with pytest.raises(InvalidImageRef) as refused:
        check_reference(server.item(picture, data), server.config)
    assert refused.value.param == "features.kwargs_data.image[0]"


@pytest.mark.parametrize("name", [*BAD, "everything"])
@pytest.mark.parametrize("value", [None, 7, [], {}, True])
def test_version_3_with_a_field_of_another_type_is_refused(server: Any, name: str, value: Any) -> None:
    picture = server.picture(96, 64)
    fields = {field: value for field in BAD if name in (field, "everything")}
    with pytest.raises(InvalidImageRef):
        check_reference(server.item(picture, picture.ref(**fields)), server.config)


@pytest.mark.parametrize(
    "data",
    ["mmraw:", "mmraw:v1:x", "mmraw:v3:", "mmraw:v3:e30", "mmraw:v3:W10", "mmraw:v3:{}", "mmraw:v2:::::::", "mmraw:v2"],
)
def test_a_malformed_reference_is_refused(server: Any, data: str) -> None:
    item = server.item(server.picture(), data)
    assert is_reference(item)
    with pytest.raises(InvalidImageRef):
        check_reference(item, server.config)


@given(cut=st.integers(0, 400), junk=st.text(max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_reference_is_refused_or_has_the_same_meaning(server: Any, cut: int, junk: str) -> None:
    picture = server.picture(96, 64, stored=False)
    whole = picture.ref()
    damaged = whole[: 9 + cut] + junk + whole[9 + cut + len(junk) :]
    try:
        claim = check_reference(server.item(picture, damaged), server.config)
    except InvalidImageRef:
        return
    assert claim.grid == picture.grid
    assert claim.ref.mm_hash == picture.hash
