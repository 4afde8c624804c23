"""Descriptors and sidecars: their fields, and that they never contain processed data."""

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderers_adapter.descriptors import (
    DescriptorError,
    ModalitySidecar,
    PlaceholderRange,
    ProcessedPayloadError,
    Sidecar,
    parse_raw_mm_item,
    raw_mm_item,
    reject_processed,
)
from renderers_adapter.errors import AdapterError

FINGERPRINT = "0123456789abcdef" * 2
PAYLOAD = {"image_grid_thw": [[1, 4, 6]]}


def make_item(**changes: Any) -> dict[str, Any]:
    fields = {"family": "qwen_vl", "fingerprint": FINGERPRINT, "payload": PAYLOAD, "raw_image_id": "a.png"}
    return raw_mm_item(**{**fields, **changes})


def make_sidecar(**changes: Any) -> Sidecar:
    fields: dict[str, Any] = {
        "hashes": ("ab" * 16, "cd" * 16),
        "placeholders": (PlaceholderRange(3, 6), PlaceholderRange(9, 6)),
        "items": (make_item(), make_item(raw_image_id="b.png")),
    }
    return Sidecar({"image": ModalitySidecar(**{**fields, **changes})})


def test_the_descriptor_of_an_offloaded_image_names_its_asset() -> None:
    assert make_item() == {
        "kind": "prime_raw_mm_item",
        "version": 1,
        "modality": "image",
        "family": "qwen_vl",
        "layout_fingerprint": FINGERPRINT,
        "payload": {"image_grid_thw": [[1, 4, 6]]},
        "raw_image_id": "a.png",
    }


def test_the_descriptor_of_an_inline_image_has_its_uri_and_the_engines_modality() -> None:
    item = make_item(raw_image_id=None, raw_uri="data:image/png;base64,AAAA", vllm_modality="vision_chunk")
    assert (item["raw_uri"], item["vllm_modality"]) == ("data:image/png;base64,AAAA", "vision_chunk")
    assert "raw_image_id" not in item
    parsed = parse_raw_mm_item(item)
    assert (parsed.raw_uri, parsed.raw_image_id, parsed.vllm_modality) == (item["raw_uri"], None, "vision_chunk")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"raw_image_id": None}, "exactly one"),
        ({"raw_uri": "data:image/png;base64,AAAA"}, "exactly one"),
        ({"raw_image_id": "a/b.png"}, "raw_image_id"),
        ({"raw_image_id": "a.png\n"}, "raw_image_id"),
        ({"raw_image_id": None, "raw_uri": "file:///etc/passwd"}, "raw_uri"),
        ({"family": ""}, "family"),
        ({"family": "a b"}, "family"),
        ({"fingerprint": "0123"}, "layout_fingerprint"),
        ({"fingerprint": FINGERPRINT.upper()}, "layout_fingerprint"),
        ({"modality": "image:"}, "modality"),
        ({"vllm_modality": "x/y"}, "vllm_modality"),
    ],
)
def test_an_unsafe_field_is_named_when_building(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DescriptorError, match=complaint):
        make_item(**changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "other"}, "kind"),
        ({"version": 2}, "version"),
        ({"payload": None}, "payload"),
        ({"payload": [[1, 2, 3]]}, "payload"),
        ({"family": 7}, "family"),
    ],
)
def test_an_unknown_descriptor_is_refused_when_reading(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DescriptorError, match=complaint):
        parse_raw_mm_item({**make_item(), **changes})


def test_a_list_is_not_a_descriptor() -> None:
    with pytest.raises(DescriptorError, match="must be a raw descriptor"):
        parse_raw_mm_item(["kind"])


PROCESSED = [
    ({"pixel_values": [1.0]}, ".pixel_values"),
    ({"pixel_values_videos": []}, ".pixel_values_videos"),
    ({"image_embeds": None}, ".image_embeds"),
    ({"image_features": 1}, ".image_features"),
    ({"a": [{"b": ({"image_embeds_videos": 0},)}]}, ".a[0].b[0].image_embeds_videos"),
    ({"grid": np.zeros(3)}, ".grid"),
    ({"grid": [np.float32(1.0)]}, ".grid[0]"),
    ({"grid": [np.float64(1.0)]}, ".grid[0]"),
    ({"grid": b"\0" * 8}, ".grid"),
    ({"grid": memoryview(b"\0" * 8)}, ".grid"),
    ({"grid": {"dtype": "float32", "shape": [3], "data": "AAAA"}}, ".grid"),
    ({"grid": {"__ndarray__": "AAAA"}}, ".grid.__ndarray__"),
    ({"grid": {"type": "torch.Tensor", "data": "AAAA"}}, ".grid.type"),
    ({"grid": {"kind": "ndarray"}}, ".grid.kind"),
    ({"grid": {b"nd": True}}, ".grid"),
    ({"grid": {1, 2}}, ".grid"),
]


@pytest.mark.parametrize(("payload", "path"), PROCESSED)
def test_processed_payloads_are_refused_when_building_with_their_path(payload: dict[str, Any], path: str) -> None:
    with pytest.raises(ProcessedPayloadError) as caught:
        make_item(payload=payload)
    assert caught.value.path == "item.payload" + path


@pytest.mark.parametrize(("payload", "path"), PROCESSED)
def test_processed_payloads_are_refused_when_encoding(payload: dict[str, Any], path: str) -> None:
    sidecar = make_sidecar()
    sidecar.modalities["image"].items[1]["payload"].update(payload)
    with pytest.raises(ProcessedPayloadError) as caught:
        sidecar.encode()
    assert caught.value.path == "sidecar.image.items[1].payload" + path


@pytest.mark.parametrize(("payload", "path"), PROCESSED)
def test_processed_payloads_are_refused_when_decoding(payload: dict[str, Any], path: str) -> None:
    encoded = make_sidecar().encode()
    encoded["image"]["items"][0] = {**encoded["image"]["items"][0], "payload": payload}
    with pytest.raises(ProcessedPayloadError) as caught:
        Sidecar.decode(encoded)
    assert caught.value.path == "sidecar.image.items[0].payload" + path


def test_a_structure_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ProcessedPayloadError, match="nested"):
        reject_processed(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcdef"), inner, max_size=3),
    max_leaves=20,
)


@given(json_values)
def test_every_json_value_is_accepted(value: Any) -> None:
    reject_processed(value)


@given(json_values, st.sampled_from(["pixel_values", "image_embeds", "image_features"]), st.data())
def test_a_processed_key_is_found_at_any_depth(value: Any, key: str, data: st.DataObject) -> None:
    value = [copy.deepcopy(value)]
    holders = [value]
    places: list[Any] = []
    while holders:
        holder = holders.pop()
        places.append(holder)
        inner = list(holder.values()) if isinstance(holder, dict) else list(holder)
        holders.extend(item for item in inner if isinstance(item, dict | list))
    place = data.draw(st.sampled_from(places))
    if isinstance(place, dict):
        place[key] = None
    else:
        place.append({key: None})
    with pytest.raises(ProcessedPayloadError) as caught:
        reject_processed(value)
    assert caught.value.path.endswith("." + key)


def test_a_sidecar_survives_encoding_and_decoding() -> None:
    assert Sidecar.decode(make_sidecar().encode()) == make_sidecar()
    assert make_sidecar().encode()["image"]["placeholders"] == [{"offset": 3, "length": 6}, {"offset": 9, "length": 6}]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hashes": ("ab" * 16,)}, "must have equally many"),
        ({"hashes": ("ab" * 16, "CD" * 16)}, r"hashes\[1\]"),
        ({"placeholders": (PlaceholderRange(3, 6), PlaceholderRange(8, 6))}, r"placeholders\[1\].*at 9 or later"),
        ({"placeholders": (PlaceholderRange(-1, 3), PlaceholderRange(9, 6))}, r"placeholders\[0\]"),
        ({"placeholders": (PlaceholderRange(3, 6), PlaceholderRange(9, 0))}, r"placeholders\[1\]"),
        ({"items": (make_item(), make_item(modality="video"))}, r"items\[1\].modality"),
        ({"items": (make_item(), {})}, r"items\[1\]"),
    ],
)
def test_a_sidecar_that_does_not_fit_together_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DescriptorError, match=complaint):
        make_sidecar(**changes)


@pytest.mark.parametrize(
    "encoded",
    [
        None,
        [],
        {"image": []},
        {"image": {}},
        {"image": {"hashes": "ab", "placeholders": [], "items": []}},
        {"image": {"hashes": ["ab" * 16], "placeholders": [{"offset": 0}], "items": [make_item()]}},
        {"image": {"hashes": ["ab" * 16], "placeholders": [7], "items": [make_item()]}},
        {"image": {"hashes": [7], "placeholders": [{"offset": 0, "length": 1}], "items": [make_item()]}},
        {"image": {"hashes": ["ab" * 16], "placeholders": [{"offset": True, "length": 1}], "items": [make_item()]}},
        {"a b": {"hashes": [], "placeholders": [], "items": []}},
    ],
)
def test_a_malformed_sidecar_is_refused_when_decoding(encoded: Any) -> None:
    with pytest.raises(DescriptorError, match=r"sidecar"):
        Sidecar.decode(encoded)


def test_every_error_is_an_adapter_error() -> None:
    assert issubclass(ProcessedPayloadError, DescriptorError)
    assert issubclass(DescriptorError, AdapterError)
