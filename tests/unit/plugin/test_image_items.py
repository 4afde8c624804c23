"""The check of a request's images before any file is read."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# conftest.py puts the plugin on the path.
from rollout_vllm.errors import InvalidImageRef  # type: ignore[import-not-found]
from rollout_vllm.image_items import check_content_parts, read_items  # type: ignore[import-not-found]

PAD = 7


def test_items_keep_their_order_and_have_the_name_of_their_field(server: Any) -> None:
    first, second = server.picture(color=1), server.picture(200, 90, color=2)
    prompt = server.prompt(first, second)
    items = read_items(prompt.token_ids, prompt.features, server.config)
    assert [(item.param, item.mm_hash, item.placeholder_length) for item in items] == [
        ("features.kwargs_data.image[0]", first.hash, first.tokens),
        ("features.kwargs_data.image[1]", second.hash, second.tokens),
    ]


@pytest.mark.parametrize("modality", ["video", "audio", "vision_chunk", "Image", "x" * 500])
def test_another_modality_is_refused_even_without_items(server: Any, modality: str) -> None:
    prompt = server.prompt(server.picture())
    for part in (prompt.features.mm_hashes, prompt.features.mm_placeholders, prompt.features.kwargs_data):
        part[modality] = []
    with pytest.raises(InvalidImageRef, match="modality"):
        read_items(prompt.token_ids, prompt.features, server.config)


@pytest.mark.parametrize("data", [None, ""])
def test_a_null_or_empty_item_is_refused_by_name(server: Any, data: str | None) -> None:
    first, second = server.picture(color=1), server.picture(color=2)
    prompt = server.prompt(first, second, data=[first.ref(), data])
    with pytest.raises(InvalidImageRef, match="null") as refused:
        read_items(prompt.token_ids, prompt.features, server.config)
    assert refused.value.param == "features.kwargs_data.image[1]"


@pytest.mark.parametrize("kwargs_data", [None, {}])
def test_items_without_data_are_refused(server: Any, kwargs_data: Any) -> None:
    prompt = server.prompt(server.picture())
    prompt.features.kwargs_data = kwargs_data
    with pytest.raises(InvalidImageRef, match="null"):
        read_items(prompt.token_ids, prompt.features, server.config)


def test_metadata_of_an_image_is_refused(server: Any) -> None:
    prompt = server.prompt(server.picture())
    prompt.features.mm_metadata = {"image": ["gadgets"]}
    with pytest.raises(InvalidImageRef, match="metadata"):
        read_items(prompt.token_ids, prompt.features, server.config)


def test_metadata_of_nulls_is_accepted(server: Any) -> None:
    prompt = server.prompt(server.picture())
    prompt.features.mm_metadata = {"image": [None]}
    assert len(read_items(prompt.token_ids, prompt.features, server.config)) == 1


@pytest.mark.parametrize(("offset", "length"), [(1, -1), (-1, 0), (0, 1), (1, 0), (0, -2), (0, 1000), (5000, 0)])
def test_a_range_that_does_not_cover_its_pads_is_refused(server: Any, offset: int, length: int) -> None:
    prompt = server.prompt(server.picture())
    place = prompt.features.mm_placeholders["image"][0]
    place.offset += offset
    place.length += length
    with pytest.raises(InvalidImageRef):
        read_items(prompt.token_ids, prompt.features, server.config)


@given(
    tokens=st.lists(st.sampled_from([PAD, PAD, 1]), min_size=1, max_size=30),
    cuts=st.lists(st.tuples(st.integers(0, 31), st.integers(1, 8)), max_size=4),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranges_pass_exactly_if_they_cover_all_pads_and_nothing_else(
    server: Any, tokens: list[int], cuts: list[tuple[int, int]]
) -> None:
    places, end = [], 0  # vLLM itself refuses ranges that overlap
    for offset, length in sorted(cuts):
        if offset >= end:
            places.append((offset, length))
            end = offset + length
    prompt = server.prompt(*[server.picture(stored=False)] * len(places))
    for place, (offset, length) in zip(prompt.features.mm_placeholders["image"], places, strict=True):
        place.offset, place.length = offset, length
    covered = [at for offset, length in places for at in range(offset, offset + length)]
    if covered == [at for at, token in enumerate(tokens) if token == PAD]:
        assert len(read_items(tokens, prompt.features, server.config)) == len(places)
    else:
        with pytest.raises(InvalidImageRef):
            read_items(tokens, prompt.features, server.config)


def test_more_images_than_the_server_accepts_are_refused(server: Any) -> None:
    prompt = server.prompt(*[server.picture()] * 9)
    with pytest.raises(InvalidImageRef, match="9 images"):
        read_items(prompt.token_ids, prompt.features, server.config)
    with pytest.raises(InvalidImageRef, match="9 images"):
        check_content_parts([PAD] * 9, [_part()] * 9, server.config)


def test_one_pad_for_each_part_passes(server: Any) -> None:
    check_content_parts([1, PAD, 2, PAD], [_part(), _part(uuid="a" * 32)], server.config)
    check_content_parts([1, 2], [], server.config)


@pytest.mark.parametrize("pads", [0, 1, 3, 600])
def test_different_numbers_of_pads_and_parts_are_refused(server: Any, pads: int) -> None:
    with pytest.raises(InvalidImageRef, match="pad tokens"):
        check_content_parts([1, *[PAD] * pads], [_part(), _part()], server.config)


def test_pads_of_a_prompt_without_images_are_refused(server: Any) -> None:
    with pytest.raises(InvalidImageRef, match="1 image pad tokens for 0 parts"):
        check_content_parts([1, PAD], [], server.config)


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"type": "picture_url"},
        {"type": None},
        {"type": "video_url"},
        {"url": None},
        {"url": ""},
        {"url": {"url": "data:"}},
        {"uuid": 7},
    ],
)
def test_a_part_that_is_not_an_image_is_refused_by_name(server: Any, part: dict[str, Any]) -> None:
    changed = _part() | part if part else {}
    with pytest.raises(InvalidImageRef) as refused:
        check_content_parts([PAD, PAD], [_part(), changed], server.config)
    assert refused.value.param == "content_parts[1]"


def _part(**more: Any) -> dict[str, Any]:
    return {"type": "image_url", "url": "data:image/png;base64,AAAA", **more}
